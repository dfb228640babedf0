"""The way to a run's devices, as the store keeps it: a resumed run needs no option for it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class RunConnection(BaseModel):
    """Broker and login of a run, or this device alone. It holds no secret: paths of files in their place."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    local: bool = Field(default=False, description="on its own device, without a broker")
    state_folder: str | None = Field(default=None, description="of the agent of a run on its own device")
    broker: str | None = None
    credentials: str | None = None
    username: str | None = None
    password_file: str | None = None
    ca_file: str | None = None
    certificate_file: str | None = None
    key_file: str | None = None
    mirror: str | None = None
    bundle_rate_bytes_per_s: float | None = None
    bundles_at_once: int | None = None
    share: bool = False
