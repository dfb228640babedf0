"""What must hold of a device setting's search after every event. For tests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fleetnas.coordinator.records.target_status import TargetStatus
from fleetnas.coordinator.records.transitions import require
from fleetnas.coordinator.tuning.proposal import Proposal
from fleetnas.coordinator.tuning.target_state import TargetState


def check_targets(states: Sequence[TargetState], *, finished: bool, failure_reason: str) -> None:
    """Check targets against the state of their search; `BrokenInvariantError` names the first contradiction."""
    for state in states:
        state.validate()
    targets_ms = [state.target_ms for state in states if state.target is None]
    require(targets_ms == sorted(set(targets_ms)), "targets are not ascending: {}", targets_ms)
    if finished:
        is_open = any(state.status is TargetStatus.OPEN for state in states)
        require(not is_open, "a finished search has open targets")
    else:
        require(not failure_reason, "a search at work has failed: {}", failure_reason)


def check_proposals(queue: Iterable[Proposal], outstanding: Mapping[Any, Proposal], *, finished: bool) -> None:
    """Check that no proposal is made twice, nor after the end; `BrokenInvariantError` names the first contradiction."""
    queued = [proposal.key for proposal in queue]
    require(len(set(queued)) == len(queued), "a proposal is queued twice")
    require(not outstanding.keys() & set(queued), "a proposal is queued and being measured")
    require(all(key == proposal.key for key, proposal in outstanding.items()), "a proposal has another key")
    require(not finished or not (queued or outstanding), "a finished search asks for measurements")
