"""Options that every family of residual networks has."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fleetnas.supernet_export.spaces.options import Ascending, Listed, SpaceOptions

#: Depths are blocks beyond a stage's least number.
ExtraDepths = Annotated[
    tuple[Annotated[int, Field(ge=0, le=15)], ...], Listed, Field(min_length=1, max_length=16), Ascending
]
Ratios = Annotated[
    tuple[Annotated[float, Field(ge=0.05, le=4)], ...], Listed, Field(min_length=1, max_length=5), Ascending
]


class ResNetOptions(SpaceOptions):
    """Options of residual families: expand ratios inside a bottleneck, extra blocks, elastic width multipliers."""

    expands: Ratios = (0.2, 0.25, 0.35)
    depths: ExtraDepths = (0, 1, 2)
    widths: Ratios = (0.65, 0.8, 1.0)
