"""Names and limits of an evaluation that options need; nothing heavy is imported for them."""

from __future__ import annotations

from typing import Literal, TypeAlias

#: How subnets are drawn.
Sampling: TypeAlias = Literal["spread", "uniform", "both"]
#: Most images that calibrate a subnet; OFA takes as many.
CALIBRATION_LIMIT = 2000
