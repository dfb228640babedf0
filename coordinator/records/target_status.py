"""Status of one latency target of a device setting; its values are stored."""

from __future__ import annotations

from enum import Enum


class TargetStatus(str, Enum):
    """Status of one latency target."""

    OPEN = "open"
    MET = "met"
    """A re-measurement of the file that ships is within it."""
    MISSED = "missed"
    INFEASIBLE = "infeasible"
    """No subnet of the design space is fast enough."""

    def __str__(self) -> str:
        return self.value
