"""Find candidates: subnets whose measurement is expected to gain the most accuracy per second of measuring.

The expected gain of a subnet is that of expected improvement (Jones et al. 1998) with a constraint (Gardner et al.
2014): for each target, the probability that the subnet is within it times the accuracy by which it beats the best
measured one; summed over the targets, since a subnet may serve several. So the targets share one budget.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from fleetnas.coordinator.records.target_status import TargetStatus
from fleetnas.coordinator.tuning.floor_search import FloorSearch
from fleetnas.coordinator.tuning.proposal import Genome, Proposal, TargetSolver
from fleetnas.coordinator.tuning.proposer import Proposer
from fleetnas.coordinator.tuning.setting_latency import SettingLatency
from fleetnas.coordinator.tuning.subnet_choice import SubnetChoice
from fleetnas.coordinator.tuning.target_state import TargetState, is_floor
from fleetnas.fleet_protocol.messages import MeasurementProtocol
from fleetnas.supernet_export.spaces.base import Genomes

Floats = NDArray[np.float64]

#: A subnet is worth a measurement whose expected gain is more than this (top-1, a fraction). A percent of latency buys
#: 0.0002 to 0.0005.
LEAST_GAIN = 0.0001
#: Margins on a prediction, in standard deviations, at which the solver is asked: likely winners, and subnets that are
#: better by more where they pass. Which of them is worth the most follows from their own probabilities.
_MARGINS = (1.0, 0.5, 0.0, -0.5, -1.0, -1.5)
#: A prediction that is too uncertain for a margin counts as this share of its mean.
_LEAST_FACTOR = 0.5
#: A round's candidates, as a share of the budget that is left, and at least: a device waits for the planning of each
#: round, and the next one knows more.
_ROUND_SHARE, _ROUND = 0.25, 3
#: Accuracy (a fraction) by which a target without any subnet is worse off than with the least accurate one.
_UNMET = 0.01
#: Seconds of a measurement that are not spent on the subnet's inference: building, loading, references.
_OVERHEAD_S = 0.5


class CandidateSearch:
    """Searches the candidates of a round."""

    def __init__(
        self,
        latency: SettingLatency,
        choice: SubnetChoice,
        proposer: Proposer,
        solver: TargetSolver,
        rng: Callable[[], np.random.Generator],
        protocol: MeasurementProtocol,
    ) -> None:
        """`rng` makes the generator of the next search; measurements follow `protocol`."""
        self._latency, self._choice, self._proposer = latency, choice, proposer
        self._solver, self._rng, self._protocol = solver, rng, protocol
        self._floors = FloorSearch(latency.space, latency, choice, solver, rng)
        #: Boards that measure at the same time: a round gives each of them a subnet.
        self._at_once = 1

    def measure_at_once(self, boards: int) -> None:
        """Set the number of boards that each round gives a subnet."""
        self._at_once = boards

    def find(self, states: Sequence[TargetState], most: int) -> list[Proposal]:
        """Return up to `most` proposals of subnets that are expected to gain accuracy, the most worth first.

        Subnets for accuracies that are to be kept follow them.
        """
        floors = [state for state in states if is_floor(state) and state.status is TargetStatus.OPEN]
        found = self._find([state for state in states if not is_floor(state)], most)
        for state in floors if most > len(found) else ():
            known = {proposal.genome for proposal in found}
            new = [genome for genome in self._floors.find(state) if tuple(genome.tolist()) not in known]
            found += self._proposer.propose(new[: max(0, most - len(found))], "candidate")
        return found

    def _find(self, states: Sequence[TargetState], most: int) -> list[Proposal]:
        if most <= 0 or not states:
            return []
        # Margins differ per target, so the solver is given the targets less their margins.
        limits_ms = np.array([self._choice.limit_ms(state) / (1.0 + self._choice.safety(state)) for state in states])
        pool = self._pool(limits_ms.tolist())
        if not len(pool):
            return []
        top1 = self._choice.accuracies(pool)
        held = [self._choice.held_accuracy(state) for state in states]
        unmet = float(top1.min()) - _UNMET
        mean_ms, deviation_ms = self._latency.predict(pool)
        gains = RoundGains(
            _normal_cdf((limits_ms - mean_ms[:, None]) / np.maximum(deviation_ms[:, None], 1e-12)),
            top1,
            np.array([unmet if accuracy is None else accuracy for accuracy in held]),
        )
        seconds = measuring_s(self._protocol, mean_ms)
        chosen = list[Genome]()
        for _ in range(min(most, max(_ROUND, self._at_once, math.ceil(_ROUND_SHARE * most)))):
            gain = gains.expected()
            worth = np.where(gain > LEAST_GAIN, gain / seconds, 0.0)
            best = int(np.argmax(worth))
            if worth[best] <= 0.0:
                break
            chosen.append(pool[best])
            gains.take(best)
        if chosen:
            chosen += [pool[row] for row in gains.next_best(min(most, self._at_once) - len(chosen))]
        return self._proposer.propose(chosen, "candidate")

    def _margins(self, targets: int) -> Sequence[float]:
        """Return the margins: more of them where many boards measure at once and these find too few subnets."""
        wanted = math.ceil(2 * self._at_once / max(targets, 1))
        return _MARGINS if wanted <= len(_MARGINS) else np.linspace(_MARGINS[0], _MARGINS[-1], wanted).tolist()

    def _pool(self, limits_ms: Sequence[float]) -> Genomes:
        """Return the predicted winners at every margin that are not measured yet, (n, G).

        One search finds them all, of each target at the limits that the usual standard deviation makes of the margins.
        """
        measured = self._latency.observations.table(unsure=True).genomes
        mean_ms, deviation_ms = self._latency.predict(measured)
        usual = float(np.median(deviation_ms / np.maximum(mean_ms, 1e-9)))
        factors = [1.0 + sigmas * usual for sigmas in self._margins(len(limits_ms))]
        winners = self._latency.winners(
            self._solver,
            [limit_ms / max(factor, _LEAST_FACTOR) for factor in factors for limit_ms in limits_ms],
            self._rng(),
            self._latency.undisturbed_model(),
            # Measured subnets must not win where only the uncertainty of others lets them pass.
            measured_factor=1.0 / max(min(factors), _LEAST_FACTOR),
        )
        found = {winner.tobytes(): winner for winner in winners if winner is not None}
        new = [genome for genome in found.values() if self._choice.is_open(genome)]
        return np.stack(new) if new else np.zeros((0, 0), np.int16)


class RoundGains:
    """Expected gain of each further subnet of a round, given those that are taken already.

    Of two subnets near a target the likelier one is taken to be within it whenever the other is: they are much alike,
    and share the predictor's error. So a second subnet of a target adds little, unless it is bolder.
    """

    def __init__(self, within: Floats, top1: Floats, held: Floats) -> None:
        """Begin a round.

        Args:
            within: probability that a subnet is within a target, (n, T).
            top1: predicted accuracy of each subnet, a fraction, (n,).
            held: accuracy that each target has already, a fraction, (T,).
        """
        self._within, self._top1, self._held = within, top1, held
        self._taken: list[int] = []

    def expected(self) -> Floats:
        """Return the expected gain of each subnet, summed over the targets, (n,); 0 of those that are taken."""
        # Per target, the taken subnets pass in this order; between two of them the best one that still passes counts.
        order = np.argsort(self._within[self._taken], axis=0, kind="stable")
        chances = np.take_along_axis(self._within[self._taken], order, axis=0)
        passing = np.maximum.accumulate(self._top1[self._taken][order][::-1], axis=0)[::-1]
        least = np.zeros(len(self._held))
        gain = np.zeros(self._within.shape)
        ends = [*zip(chances, np.maximum(passing, self._held), strict=True), (np.ones(len(self._held)), self._held)]
        for most, held in ends:
            chance = np.maximum(np.minimum(self._within, most) - least, 0.0)
            gain += chance * np.maximum(self._top1[:, None] - held, 0.0)
            least = most
        found: Floats = gain.sum(axis=1)
        found[self._taken] = 0.0
        return found

    def take(self, row: int) -> None:
        """Take a subnet into the round."""
        self._taken.append(row)

    def next_best(self, count: int) -> list[int]:
        """Return up to `count` further subnets by what each gains alone: for boards that would have nothing to do."""
        alone = RoundGains(self._within, self._top1, self._held).expected()
        alone[self._taken] = 0.0
        order = np.argsort(-alone, kind="stable")[: max(0, count)]
        return [int(row) for row in order if alone[row] > 0.0]


def measuring_s(protocol: MeasurementProtocol, latency_ms: Floats) -> Floats:
    """Return the time that measurements take, seconds, (n,), of subnets with these latencies, ms, (n,)."""
    inference = np.maximum(protocol.min_s, protocol.min_runs * np.maximum(latency_ms, 0.0) / 1000.0)
    found: Floats = _OVERHEAD_S + protocol.warmup_s + np.minimum(inference, protocol.max_s)
    return found


def _normal_cdf(sigmas: Floats) -> Floats:
    """Return the probability that a standard normal variable is at most `sigmas`, elementwise."""
    return np.array([0.5 * math.erfc(-each / math.sqrt(2.0)) for each in sigmas.ravel()]).reshape(sigmas.shape)
