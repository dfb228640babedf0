"""Choice among the runtime settings that agents offer."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict, Field

from fleetnas.fleet_protocol.messages import Precision, RuntimeName, RuntimeSetting


class SettingFilter(BaseModel):
    """Properties that a setting must have to take part; empty: every setting does."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    labels: tuple[str, ...] = Field(default=(), max_length=64, description="labels of settings; empty: any")
    runtime: RuntimeName | None = None
    threads: int | None = Field(default=None, ge=1, le=256)
    precision: Precision | None = None

    def takes(self, setting: RuntimeSetting) -> bool:
        """Whether a setting has all properties that are asked for."""
        asked = ((self.runtime, setting.runtime), (self.threads, setting.threads), (self.precision, setting.precision))
        if self.labels and setting.label not in self.labels:
            return False
        return all(wanted is None or wanted == found for wanted, found in asked)

    def absence(self, offered: Iterable[str]) -> str:
        """Explain that no device offers such a setting; `offered` are labels, as `device/setting`."""
        return (
            f"no device offers a setting with {self}; offered are {', '.join(sorted(offered)) or 'none'}: start an "
            "agent with it (`fleetnas-agent run --setting ...`), or ask for another one"
        )

    def __str__(self) -> str:
        parts = [" or ".join(self.labels)] if self.labels else []
        named = (("runtime", self.runtime), ("threads", self.threads), ("precision", self.precision))
        return ", ".join([*parts, *(f"{name} {value}" for name, value in named if value is not None)])
