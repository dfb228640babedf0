"""Find candidates: predicted winners of the targets that are not measured yet."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from fleetnas.coordinator.tuning.proposal import Genome, Proposal, TargetSolver
from fleetnas.coordinator.tuning.proposer import Proposer
from fleetnas.coordinator.tuning.setting_latency import SettingLatency
from fleetnas.coordinator.tuning.subnet_choice import SubnetChoice
from fleetnas.coordinator.tuning.target_state import TargetState

#: A subnet is worth a measurement that is predicted better by more than this (top-1, a fraction): the first as long
#: as there are any, then, while there is budget, the second. A percent of latency buys 0.0002 to 0.0005.
ACCURACY_GAINS = (0.0005, 0.0001)
#: Margin on a prediction in its standard deviations. Once nothing better is likely to meet a target, subnets are
#: tried that may; each teaches the predictor where it was wrong.
_MARGINS = (0.5, 0.0, -0.5)
#: A round's candidates at least, if that many are found at all: rounds of one or two find hardly more, and a device
#: waits for each.
_ROUND = 3


class CandidateSearch:
    """Searches the candidates of a round."""

    def __init__(
        self,
        latency: SettingLatency,
        choice: SubnetChoice,
        proposer: Proposer,
        solver: TargetSolver,
        rng: Callable[[], np.random.Generator],
    ) -> None:
        """`rng` makes the generator of the next search."""
        self._latency, self._choice, self._proposer = latency, choice, proposer
        self._solver, self._rng = solver, rng

    def find(self, states: Sequence[TargetState], most: int) -> list[Proposal]:
        """Return up to `most` proposals of subnets that are likely to be better than the measured ones."""
        if most <= 0:
            return []
        # Margins differ per target, so the solver is given the targets less their margins.
        margins = [self._choice.safety(state) for state in states]
        targets_ms = [state.target_ms / (1.0 + margin) for state, margin in zip(states, margins, strict=True)]
        best = [
            self._choice.best_measured(state, margin, unsure=False)
            for state, margin in zip(states, margins, strict=True)
        ]
        accuracies = [-math.inf if genome is None else self._choice.accuracy(genome) for genome in best]
        predicted, found = self._latency.undisturbed_model(), list[list[Genome | None]]()
        for gain in ACCURACY_GAINS:
            chosen: dict[bytes, Genome] = {}
            for place, sigmas in enumerate(_MARGINS):
                if place == len(found):
                    model = predicted.at_margin(sigmas)
                    found.append(self._latency.winners(self._solver, targets_ms, self._rng(), model))
                for accuracy, winner in zip(accuracies, found[place], strict=True):
                    if winner is not None and self._choice.improves(accuracy, winner, gain):
                        chosen.setdefault(winner.tobytes(), winner)
                if len(chosen) >= min(_ROUND, most):
                    break
            if chosen:
                return self._proposer.propose(list(chosen.values())[:most], "candidate")
        return []
