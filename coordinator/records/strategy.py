"""Search strategies over several latency targets."""

from __future__ import annotations

from enum import Enum


class Strategy(str, Enum):
    """Order in which the targets are searched; the value is the name on the command line and in stored runs.

    Sources: arXiv 2012.06748 (bottom-up, top-down, independent), ICLR 2021 CompOFA (exhaustive).
    """

    JOINT = "joint"
    """All targets at once over one archive."""
    BOTTOM_UP = "bottom-up"
    """From the smallest target upwards, each started from the subnets found before."""
    TOP_DOWN = "top-down"
    """From the largest target downwards, each started from randomly pruned winners."""
    INDEPENDENT = "independent"
    """Every target from scratch."""
    EXHAUSTIVE = "exhaustive"
    """Every subnet of a small space is evaluated."""

    def __str__(self) -> str:
        return self.value
