"""Name the weights that a checkpoint with several may be read for."""

from __future__ import annotations

from typing import Literal, TypeAlias

#: Which weights are wanted where a file has both: those that were trained, or their moving average.
WeightsChoice: TypeAlias = Literal["raw", "ema"]
