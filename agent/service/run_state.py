"""States of the task that an agent works on, and the transitions between them."""

from __future__ import annotations

from enum import Enum, auto


class RunState(Enum):
    """The one thing that a task run does now. A run begins with `FETCHING` and ends with `ENDED`."""

    #: Brings the bundle and the calibration into the cache.
    FETCHING = auto()
    #: The child works on the order: it builds, looks at the device's speed, or measures.
    MEASURING = auto()
    #: Waits for a faster or cooler device, then looks at it again.
    COOLING = auto()
    #: Waits for the battery, or for the host's lock, for as long as it takes.
    RESTING = auto()
    #: Has an outcome, or was stopped.
    ENDED = auto()


_NEXT: dict[RunState, frozenset[RunState]] = {
    RunState.FETCHING: frozenset({RunState.MEASURING, RunState.ENDED}),
    RunState.MEASURING: frozenset({RunState.COOLING, RunState.RESTING, RunState.ENDED}),
    RunState.COOLING: frozenset({RunState.FETCHING, RunState.ENDED}),
    RunState.RESTING: frozenset({RunState.FETCHING, RunState.ENDED}),
    RunState.ENDED: frozenset(),
}


def transition(current: RunState, new: RunState) -> RunState:
    """Return `new`; `ValueError` if a run cannot go there from `current`."""
    if new not in _NEXT[current]:
        raise ValueError(f"a task run cannot go from {current.name} to {new.name}")
    return new
