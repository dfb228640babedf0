"""The states of a task at work, and where an attempt may be."""

from __future__ import annotations

import itertools

import pytest

from fleetnas.agent.service.run_state import RunState, transition

ALLOWED = {
    (RunState.FETCHING, RunState.MEASURING),
    (RunState.FETCHING, RunState.ENDED),
    (RunState.MEASURING, RunState.COOLING),
    (RunState.MEASURING, RunState.RESTING),
    (RunState.MEASURING, RunState.ENDED),
    (RunState.COOLING, RunState.FETCHING),
    (RunState.COOLING, RunState.ENDED),
    (RunState.RESTING, RunState.FETCHING),
    (RunState.RESTING, RunState.ENDED),
}


@pytest.mark.parametrize(("current", "new"), list(itertools.product(RunState, RunState)))
def test_transitions(current: RunState, new: RunState) -> None:
    if (current, new) in ALLOWED:
        assert transition(current, new) is new
    else:
        with pytest.raises(ValueError, match=f"from {current.name} to {new.name}"):
            transition(current, new)
