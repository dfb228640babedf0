"""Clocks that a campaign is given, so that a simulated fleet can pass its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Clocks:
    """The two clocks of a campaign, both in seconds."""

    elapsed: Callable[[], float]
    """Never goes back; its origin means nothing. Leases and pauses are measured with it."""
    wall: Callable[[], float]
    """Seconds since 1970, for records and events."""
