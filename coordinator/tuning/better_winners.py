"""Better winners of decided targets: subnets that challenge a winner, and winners that serve another target as well."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from fleetnas.coordinator.records.target_status import TargetStatus
from fleetnas.coordinator.tuning.observations import Observations
from fleetnas.coordinator.tuning.proposal import Genome
from fleetnas.coordinator.tuning.shortlist import Shortlists
from fleetnas.coordinator.tuning.subnet_choice import SubnetChoice
from fleetnas.coordinator.tuning.target_state import TargetState, is_floor

#: Failed re-measurements of one target after which no more are tried.
MAX_FAILED_VERIFICATIONS = 4
#: Least expected gain of a challenge, top-1, a fraction.
_CHALLENGE_GAIN = 0.0003


class Challengers:
    """Measured subnets that are better than the winners of their targets, and likely to be within too."""

    def __init__(self, observations: Observations, choice: SubnetChoice, shortlists: Shortlists) -> None:
        self._observations, self._choice, self._shortlists = observations, choice, shortlists

    def best(self, state: TargetState, states: Sequence[TargetState]) -> Genome | None:
        """Return the measured subnet with the greatest expected gain over a target's winner; None without one."""
        if state.status is not TargetStatus.MET or is_floor(state) or self._shortlists.best(state) is not None:
            return None
        if not state.may_be_challenged or state.failures >= MAX_FAILED_VERIFICATIONS:
            return None
        held = max(winner.accuracy or 0.0 for winner in states if winner is state or serves(winner, state))
        table = self._observations.table(unsure=True)
        near = table.genomes[table.typical_ms <= self._choice.limit_ms(state)]
        gains = np.maximum(self._choice.accuracies(near) - held, 0.0) if len(near) else np.zeros(0)
        for row in np.flatnonzero(gains > _CHALLENGE_GAIN):
            gains[row] *= self._choice.chance_to_fit(state, near[row])
        best = int(np.argmax(gains)) if len(gains) else 0
        return near[best] if len(gains) and gains[best] > _CHALLENGE_GAIN else None


def adopt_better_winners(states: Sequence[TargetState], shortlists: Shortlists) -> None:
    """Let a better winner of another target serve a target that it was measured within as well.

    So no looser target ends with a less accurate winner than a tighter one.
    """
    met = [replace(state) for state in states if state.status is TargetStatus.MET]
    for state in states:
        within = [winner for winner in met if serves(winner, state)]
        accuracy = _accuracy_of([state, *within], shortlists)
        best = max(within, key=accuracy, default=None)
        if best is None or (state.status is TargetStatus.MET and accuracy(state) >= accuracy(best)):
            continue
        state.adopt(best)


def _accuracy_of(states: Sequence[TargetState], shortlists: Shortlists) -> Callable[[TargetState], float]:
    """Return the accuracy by which winners are compared: on selection images where that of all is known."""
    met = [state for state in states if state.status is TargetStatus.MET]
    if all(shortlists.accuracy(state.genome) is not None for state in met):
        return lambda state: shortlists.accuracy(state.genome) or 0.0
    return lambda state: state.accuracy or 0.0


def serves(winner: TargetState, state: TargetState) -> bool:
    """Whether a target's winner was measured within another target as well; both are about the same quantity."""
    if winner.status is not TargetStatus.MET:
        return False
    if winner.target is None and state.target is None:
        return (winner.verified_ms or math.inf) <= state.target_ms and (
            winner.typical_ms is None or winner.typical_ms <= state.target_ms
        )
    if winner.target is None or state.target is None or is_floor(winner):
        return False
    same = (winner.target.kind, winner.target.percentile) == (state.target.kind, state.target.percentile)
    decides = winner.shown.high if winner.shown.high is not None else winner.shown.value
    typical = winner.shown.typical
    return (
        same
        and decides is not None
        and state.target.is_within(decides)
        and (typical is None or state.target.is_within(typical))
    )
