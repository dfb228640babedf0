"""Place of a board in its class of equal boards."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BoardPlace:
    """One board of a class of several."""

    class_name: str
    boards: int
    """Boards that the class has had."""
    speed: float
    """Its latencies over those of the middle board of its class."""
    speed_error: float
    """Relative standard error of that."""
    slow: bool
    """Whether it is slower than boards of its class are."""
