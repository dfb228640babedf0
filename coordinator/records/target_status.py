"""Statuses of a latency target on one device setting, and the transitions between them."""

from __future__ import annotations

from enum import Enum

from fleetnas.coordinator.records.transitions import StateMachine


class TargetStatus(str, Enum):
    """Status of one latency target. The values are stored and shown."""

    OPEN = "open"
    """Its winner is searched or about to be verified."""
    MET = "met"
    """A re-measurement was within it."""
    MISSED = "missed"
    """No re-measurement was within it, and no further one is planned."""
    INFEASIBLE = "infeasible"
    """Not even the fastest subnet is within it."""

    __str__ = str.__str__


#: A target that was given up is explained once more at the end, by all measurements, and may take over the winner of a
#: tighter target. A winner may turn out to be beyond its target at the speed that is typical of the run.
_GIVEN_UP = {TargetStatus.OPEN, TargetStatus.MET, TargetStatus.MISSED, TargetStatus.INFEASIBLE}
_MACHINE = StateMachine(
    "a target",
    {
        TargetStatus.OPEN: {TargetStatus.MET, TargetStatus.MISSED, TargetStatus.INFEASIBLE},
        TargetStatus.MET: {TargetStatus.OPEN, TargetStatus.MET},
        TargetStatus.MISSED: _GIVEN_UP,
        TargetStatus.INFEASIBLE: _GIVEN_UP,
    },
)


def transition(present: TargetStatus, following: TargetStatus) -> TargetStatus:
    """Return the status `following` that a target takes on; `InvalidTransitionError` where it may not."""
    return _MACHINE.check(present, following)
