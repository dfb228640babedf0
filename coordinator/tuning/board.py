"""One board of a class of equal boards: the work that it has and what it has done."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from fleetnas.coordinator.tuning.proposal import Proposal

#: Identity of a proposal among those of a class.
ProposalKey = tuple[tuple[int, ...], str, float | None]


@dataclass
class Board:
    """One board of a class."""

    name: str
    queue: deque[Proposal] = field(default_factory=deque)
    """Work that it was given and has not asked for yet."""
    outstanding: dict[ProposalKey, Proposal] = field(default_factory=dict)
    anchored: bool = False
    """Whether it was asked to measure the anchor."""
    gone: bool = False
    measurements: int = 0
    measured: bool = False
    failures: int = 0
    failure_reason: str = ""
    told_slow: bool = False

    @property
    def load(self) -> int:
        """Measurements that it has before it, the anchor included."""
        return len(self.queue) + len(self.outstanding) + (not self.anchored)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is asked of it."""
        return not self.queue and not self.outstanding
