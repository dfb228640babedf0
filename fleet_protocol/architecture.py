"""An architecture as it crosses the wire: OFA's own keys `ks`, `e`, `d`, `r`, `w`."""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

_Small = Annotated[int, Field(ge=0, le=64)]
_Ratio = Annotated[float, Field(ge=0, le=64, allow_inf_nan=False)]


class Architecture(BaseModel):
    """One point of a design space.

    Entries of blocks beyond their stage's depth are inactive; the canonical form, which the design spaces
    return, sets them to 0, as OFA's `feature2arch` does.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    ks: tuple[_Small, ...] = Field(default=(), max_length=64, description="kernel size per block")
    e: tuple[_Ratio, ...] = Field(default=(), max_length=64, description="expand ratio per block")
    d: tuple[_Small, ...] = Field(default=(), max_length=64, description="depth per stage")
    r: int = Field(ge=8, le=1024, description="input resolution in pixels")
    w: tuple[_Small, ...] = Field(default=(), max_length=64, description="width-multiplier index per stage (ResNet)")

    @cached_property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that name this architecture in logs and file names."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:12]
