"""One board of a class of equal boards: the work that it has and what it has done."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from fleetnas.coordinator.tuning.proposal import Proposal
from fleetnas.coordinator.tuning.proposal import ProposalKey as ProposalKey


@dataclass
class Board:
    """One board of a class."""

    name: str
    queue: deque[Proposal] = field(default_factory=deque)
    """Work that it was given and has not asked for yet."""
    outstanding: dict[ProposalKey, Proposal] = field(default_factory=dict)
    anchored: bool = False
    """Whether it was asked to measure the anchor."""
    anchor_told: bool = False
    """Whether it told its own measurement of the anchor; one more is an outcome as any other."""
    gone: bool = False
    measurements: int = 0
    measured: bool = False
    failures: int = 0
    failure_reason: str = ""
    told_slow: bool = False

    def leave(self, reason: str = "") -> list[Proposal]:
        """Note that it is gone, given up for a `reason` or lost; return the work that it had."""
        self.gone, self.failure_reason = True, reason or self.failure_reason
        left = [*self.outstanding.values(), *self.queue]
        self.outstanding.clear()
        self.queue.clear()
        return left

    def take_anchor(self, proposal: Proposal | None = None) -> None:
        """Note that it measures the anchor, perhaps with a proposal to queue."""
        self.anchored = True
        if proposal is not None:
            self.queue.append(proposal)

    def tell_anchor(self) -> None:
        """Note that it told its own measurement of the anchor, or that this failed."""
        self.anchored = self.anchor_told = True

    def holds(self, key: ProposalKey) -> bool:
        """Whether it measures a proposal, or has it in its queue."""
        return key in self.outstanding or any(waiting.key == key for waiting in self.queue)

    def drop(self, key: ProposalKey) -> None:
        """Take a proposal out of its queue."""
        if any(waiting.key == key for waiting in self.queue):
            self.queue = deque(waiting for waiting in self.queue if waiting.key != key)

    def count(self, measurements: int) -> None:
        """Count measurements that use up the budget."""
        self.measurements += measurements

    def note_measured(self) -> None:
        """Note that a subnet was measured on it."""
        self.measured = True

    def count_failure(self) -> int:
        """Count a failed measurement; return their number."""
        self.failures += 1
        return self.failures

    def tell_slow(self) -> None:
        """Note that the log says that it is slow."""
        self.told_slow = True

    @property
    def load(self) -> int:
        """Measurements that it has before it, the anchor included."""
        return len(self.queue) + len(self.outstanding) + (not self.anchored)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is asked of it."""
        return not self.queue and not self.outstanding
