"""Times of a model's layers, as the runtime's own profiler gives them."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from fleetnas.device_profiles.text_fields import PlainText

#: Layers of a profile, at most: with raw times and these a message stays below its greatest size.
MAX_LAYERS = 160

_Name = Annotated[PlainText, Field(max_length=64)]


class LayerTime(BaseModel):
    """One layer of a model as the runtime executes it; layers that it fuses are one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: _Name = Field(description="as in the model file")
    op: _Name = Field(description="operator as the runtime calls it")
    mean_us: Annotated[float, Field(ge=0, le=1e11, allow_inf_nan=False)] = Field(
        description="mean time of one inference, microseconds, without the slowest tenth"
    )


Layers: TypeAlias = Annotated[tuple[LayerTime, ...], Field(max_length=MAX_LAYERS)]
