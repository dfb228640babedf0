"""States of a measurement task, and the transitions between them."""

from __future__ import annotations

from enum import Enum

from fleetnas.coordinator.records.transitions import StateMachine


class TaskState(str, Enum):
    """State of one task of a device setting."""

    READY = "ready"
    """It waits in its queue to be dispatched, for the first time or once more."""
    LEASED = "leased"
    """An agent holds it, until its result comes or its lease ends."""
    USED_UP = "used up"
    """It was dispatched as often as a task may be; it is about to count as failed."""
    DONE = "done"
    """An outcome of it was counted."""
    ABANDONED = "abandoned"
    """Its device setting ended before an outcome came; a late result still counts."""

    __str__ = str.__str__


_MACHINE = StateMachine(
    "a task",
    {
        TaskState.READY: {TaskState.LEASED, TaskState.DONE, TaskState.ABANDONED},
        TaskState.LEASED: {TaskState.READY, TaskState.USED_UP, TaskState.DONE, TaskState.ABANDONED},
        TaskState.USED_UP: {TaskState.DONE, TaskState.ABANDONED},
        TaskState.ABANDONED: {TaskState.DONE},
    },
)


def transition(present: TaskState, following: TaskState) -> TaskState:
    """Return the state `following` that a task takes on; `InvalidTransitionError` where it may not."""
    return _MACHINE.check(present, following)
