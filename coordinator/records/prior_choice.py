"""Names of the priors of a latency predictor."""

from __future__ import annotations

from typing import Literal, TypeAlias

#: Prior of a latency predictor: learned from what the store's earlier runs measured, or the same for every device.
PriorChoice: TypeAlias = Literal["learned", "default"]
