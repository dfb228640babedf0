"""The search on one device setting as pure ask and tell: no network, clock, threads or printing.

A spread of subnets first; then, round by round, the predicted winners of every target that are not yet measured, with
predictions replaced by measurements where there are any; then each target's winner is measured once more, as the
file that ships. A miss counts and the next best is tried.

What is asked is a function of the seed and of what was told, whatever the order within a round, so telling a stored
run again resumes it, and it ends as it would have ended.
"""

from __future__ import annotations

import bisect
import math
import statistics
from collections import deque
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from coordinator.campaign.evidence import Evidence, relative_noise
from coordinator.campaign.opening import Opening
from coordinator.campaign.proposal import Genome, Proposal, TargetState, WinnerSearch
from coordinator.campaign.targets import TargetRequest
from coordinator.predictors.bayesian import BayesianPredictor, HeldOutError
from coordinator.predictors.prior import Prior
from coordinator.search.bounds import Bounds
from coordinator.search.latency import LibraryLatency, MeasuredLatency, PredictorLatency
from coordinator.search.problem import AccuracyModel
from coordinator.view.events import Purpose
from fleet_protocol.messages import Failed, Measurement
from supernet_export.spaces.base import DesignSpace, Genomes

Floats = NDArray[np.float64]

#: A subnet is worth a measurement that is predicted better by more than this (top-1, a fraction): the first as long
#: as there are any, then, while there is budget, the second. A percent of latency buys 0.0002 to 0.0005.
ACCURACY_GAINS = (0.0005, 0.0001)
#: Re-measurements of one target before it is given up, and new subnets that a miss may still bring in.
MAX_VERIFICATIONS, MAX_FAILED_VERIFICATIONS = 6, 4
MAX_REPLACEMENTS = 2
#: A subnet that was measured within the target, but not by the margin, is re-measured first where it is better by this
#: (top-1, a fraction): passing is likely enough to be worth what a miss costs.
_DARED_FOR = 0.005
#: So many failures without a single measurement, and the device setting is given up.
HOPELESS_FAILURES = 6
#: Automatic targets end where accuracy does: probes of the foretold front, what counts as equal accuracy there (a
#: fraction), and the room that the last target leaves above.
_PROBES = 12
_SAME_ACCURACY = 0.001
_ROOM_ABOVE = 1.08
#: Measurements of one subnet of the spread, and of one verification, that a disturbed device may spoil.
_SPREAD_TRIES, _DISTURBED_TRIES = 2, 2
#: Margin on a target in standard deviations of a measurement, and its bounds. Small, so that winners fill their
#: targets: most pass when they are measured again, and a miss costs one more measurement with twice the margin.
_SAFETY_SIGMAS, _LEAST_SAFETY, _MOST_SAFETY = 1.2, 0.01, 0.10
#: Margin on a prediction in its standard deviations. Once nothing better is likely to meet a target, subnets are
#: tried that may; each teaches the predictor where it was wrong.
_MARGINS = (0.5, 0.0, -0.5)
#: A round's candidates at least, if that many are found at all: rounds of one or two find hardly more, and a device
#: waits for each.
_ROUND = 3
_REPLACEMENT_MARGIN = 1.0


class DeviceSearch:
    """One device setting's search."""

    def __init__(
        self,
        space: DesignSpace,
        accuracy: AccuracyModel,
        targets: TargetRequest,
        search: WinnerSearch,
        *,
        budget: int = 40,
        spread: int = 10,
        seed: int = 0,
        prior: Prior | None = None,
        bounds: Bounds | None = None,
        opening: Opening | None = None,
    ) -> None:
        """`budget` counts all but verifications, of which the first `spread` cover the space.

        Nothing that breaks the `bounds` is ever measured; `search` must keep them too. An `opening` that was made for
        the same space, spread, seed, prior and bounds may be given.
        """
        self.space = space
        self.budget = budget
        self._targets: list[TargetState] = []
        self._stands = True
        self.failure_reason = ""
        self.measurements = 0
        self.failures = 0
        self._accuracy = accuracy
        self._request = targets
        self._search = search
        self._seed = seed
        self._told = 0
        opening = opening or Opening(space, count=min(spread, budget), seed=seed, prior=prior, bounds=bounds)
        self._features, self._architecture = opening.features, opening.architecture
        self._prior = opening.prior
        #: All measurements: genome, latency and noise in ms.
        self._lessons: list[tuple[tuple[int, ...], float, float]] = []
        self._learner: BayesianPredictor | None = None
        self._evidence = Evidence()
        self._foretold: dict[bytes, float | None] = {}
        #: Of all measurements, ascending.
        self._noise: list[float] = []
        self._spread = opening.spread
        self._spread_tries = dict.fromkeys((genome.tobytes() for genome in self._spread), 0)
        self._queue: deque[Proposal] = deque()
        self._outstanding: dict[tuple[tuple[int, ...], Purpose, float | None], Proposal] = {}
        self._last_failure = ""
        self._exploring = True
        self._finished = False

    # -- what the campaign sees --------------------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        """Nothing is left to ask."""
        return self._finished

    @property
    def phase(self) -> Literal["spread", "search", "verification", "done"]:
        """Where the search stands."""
        if self._finished:
            return "done"
        if not self._targets:
            return "spread"
        return "search" if self._exploring else "verification"

    @property
    def targets(self) -> list[TargetState]:
        """Every target with its best subnet so far; none before the spread is measured."""
        if not self._stands:
            self._stands = True
            self._refresh_standings()
        return self._targets

    @property
    def targets_note(self) -> str:
        """What is to be said of the targets as a whole, such as why they are fewer than were asked for."""
        return ""

    def target(self, target_ms: float | None) -> TargetState | None:
        """One target as its verifications left it; one that has none yet may stand better by now."""
        return next((state for state in self._targets if state.target_ms == target_ms), None)

    @property
    def decided(self) -> list[TargetState]:
        """The targets that are not open any more."""
        return [state for state in self._targets if state.status != "open"]

    @property
    def quarantined(self) -> int:
        """Subnets that failed twice and are left alone."""
        return len(self._evidence.quarantined())

    @property
    def fastest_ms(self) -> float | None:
        """Latency of the fastest subnet that was measured."""
        _, latency = self._measured()
        return float(latency[0]) if len(latency) else None

    def held_out_error(self) -> HeldOutError:
        """The predictor's own error: each measured subnet foretold from all others."""
        return self._predictor.leave_one_out()

    def predict(self, genomes: Genomes) -> tuple[Floats, Floats]:
        """Mean and standard deviation of a measurement, ms, each (n,)."""
        return self._predictor.predict(self._features.features(genomes), include_noise=True)

    @property
    def needs_planning(self) -> bool:
        """Whether the next `ask` has to think (some 0.1 s) rather than hand out what is planned already."""
        return not self._finished and not self._queue and not self._outstanding

    @property
    def _predictor(self) -> BayesianPredictor:
        """The predictor, with all measurements learned.

        From the prior, in an order of their own: so few cost little more than the latest alone, and not even rounding
        depends on who was faster or on whether a coordinator came back.
        """
        if self._learner is None:
            self._learner = BayesianPredictor(self._prior)
            if self._lessons:
                genomes, latency, noise = zip(*sorted(self._lessons), strict=True)
                self._learner.update(self._features.features(np.array(genomes, dtype=np.int16)), latency, noise)
        return self._learner

    # -- ask and tell ------------------------------------------------------------------------------------------

    def ask(self, count: int) -> list[Proposal]:
        """Up to `count` subnets to measure next; none while a round's last ones are out."""
        if self.needs_planning:
            self._queue.extend(self._next_round())
        handed = [self._queue.popleft() for _ in range(min(count, len(self._queue)))]
        self._outstanding.update((proposal.key, proposal) for proposal in handed)
        return handed

    def expect(self, proposal: Proposal) -> None:
        """A proposal of an earlier coordinator has no outcome yet: its round goes on."""
        self._outstanding[proposal.key] = proposal

    def tell(self, proposal: Proposal, outcome: Measurement | Failed) -> None:
        """What a proposal brought; also one that a stored run had asked for."""
        if proposal.purpose != "spread":
            self._settle_targets()
        self._told += 1
        self._outstanding.pop(proposal.key, None)
        self._queue = deque(waiting for waiting in self._queue if waiting.key != proposal.key)
        genome = np.array(proposal.genome, dtype=np.int16)
        if proposal.purpose != "verification":
            self._foretold.setdefault(genome.tobytes(), proposal.predicted_ms)
            # A subnet that stands in for one that missed its target is past the budget's end.
            self.measurements += proposal.target_ms is None
        if proposal.purpose == "spread" and genome.tobytes() in self._spread_tries:
            self._spread_tries[genome.tobytes()] += 1
        for state in self._targets:
            state.replacements += proposal.purpose == "candidate" and state.target_ms == proposal.target_ms
        if isinstance(outcome, Failed):
            self.failures += 1
            self._last_failure = f"{outcome.reason} ({outcome.detail})" if outcome.detail else outcome.reason
            self._evidence.add_failure(genome)
        elif outcome.quality != "slowed":
            self._learn(genome, outcome)
        if proposal.purpose == "verification":
            self._judge(proposal, genome, outcome)
        self._check_hope(outcome)
        self._stands = False

    def _learn(self, genome: Genome, measurement: Measurement) -> None:
        self._evidence.add(genome, measurement)
        noise = relative_noise(measurement)
        bisect.insort(self._noise, noise)
        # The sentinel says how much slower the device is now than when it started.
        latency = measurement.undisturbed_ms or measurement.median_ms
        self._lessons.append((tuple(genome.tolist()), latency, noise * latency))
        self._learner = None

    def _check_hope(self, outcome: Measurement | Failed) -> None:
        if not isinstance(outcome, Failed) or self.failures < HOPELESS_FAILURES:
            return
        if not len(self._evidence.measured(unsure=True)[1]):
            self.failure_reason = (
                f"its first {self.failures} measurements all failed, the last with {self._last_failure}; "
                "run `fleetnas-agent doctor` on the device"
            )
            self._finish()

    # -- the spread --------------------------------------------------------------------------------------------

    def _spread_open(self, genome: Genome) -> bool:
        evidence = self._evidence.of(genome)
        if self.measurements >= self.budget or evidence.quarantined:
            return False
        if evidence.latency_ms is not None and evidence.sure:
            return False
        return self._spread_tries[genome.tobytes()] - evidence.failures < _SPREAD_TRIES

    def _spread_done(self) -> bool:
        return not any(self._spread_open(genome) for genome in self._spread)

    def _settle_targets(self) -> None:
        """Once the spread is measured the targets are known; what comes later changes none of them."""
        if not self._targets and not self._finished and self._spread_done():
            self._resolve_targets()
            self._stands = False

    def _resolve_targets(self) -> None:
        genomes, latency = self._evidence.measured(unsure=True)
        if not len(latency):
            self.failure_reason = (
                "every measurement failed or was slowed down; let nothing else run on the device, keep it cool, and "
                "search again"
            )
            self._finish()
            return
        # A slow subnet that was slower still for a moment must not stretch the range: the predictor, which gives
        # outliers little weight, bounds what it may have taken.
        mean, std = self.predict(genomes)
        slowest_ms = float(np.minimum(latency, mean + 2.0 * std).max())
        fastest_ms = float(latency[0])
        if self._request.automatic:
            slowest_ms = min(slowest_ms, _ROOM_ABOVE * self._enough_ms(fastest_ms, slowest_ms))
        resolved = self._request.resolve(fastest_ms, max(slowest_ms, fastest_ms))
        self._targets = [TargetState(target_ms) for target_ms in resolved]

    def _enough_ms(self, fastest_ms: float, slowest_ms: float) -> float:
        """The latency beyond which no subnet is foretold to be more accurate: a target there would change nothing."""
        probes = np.geomspace(fastest_ms, max(slowest_ms, fastest_ms), _PROBES)
        latency = PredictorLatency(self._features, self._predictor)
        genomes, _ = self._evidence.measured(unsure=True)
        found = self._search(latency, probes.tolist(), genomes, np.random.default_rng([self._seed, 4]))
        winners = np.array([winner for winner in found if winner is not None], dtype=np.int16)
        if not len(winners):
            return slowest_ms
        accuracy = np.asarray(self._accuracy.predict(winners))
        good = winners[accuracy >= accuracy.max() - _SAME_ACCURACY]
        return float(latency.predict(good).min())

    # -- rounds ------------------------------------------------------------------------------------------------

    def _next_round(self) -> list[Proposal]:
        spread = [genome for genome in self._spread if self._spread_open(genome)]
        if spread:
            return self._propose(spread[: self.budget - self.measurements], "spread")
        self._settle_targets()
        if self._finished:
            return []
        if self._exploring:
            found = self._candidates()
            if found:
                return found
            self._exploring = False
        round_ = [proposal for state in self._open_targets() if (proposal := self._verification(state)) is not None]
        if not round_:
            self._finish()
        return round_

    def _open_targets(self) -> list[TargetState]:
        return [state for state in self._targets if state.status == "open"]

    def _candidates(self) -> list[Proposal]:
        """Predicted winners that are not measured yet and likely to be better than what is."""
        left = self.budget - self.measurements
        if left <= 0:
            return []
        states = self._open_targets()
        foretold, found = self._foretelling(), list[list[Genome | None]]()
        best = [self._best_accuracy(state) for state in states]
        for gain in ACCURACY_GAINS:
            chosen: dict[bytes, Genome] = {}
            for place, sigmas in enumerate(_MARGINS):
                if place == len(found):
                    found.append(self._winners(states, foretold.at_margin(sigmas)))
                for accuracy, winner in zip(best, found[place], strict=True):
                    if winner is not None and self._improves(accuracy, winner, gain):
                        chosen.setdefault(winner.tobytes(), winner)
                if len(chosen) >= min(_ROUND, left):
                    break
            if chosen:
                return self._propose(list(chosen.values())[:left], "candidate")
        return []

    def _foretelling(self, sigmas: float = 0.0) -> PredictorLatency:
        return PredictorLatency(self._features, self._predictor, sigmas=sigmas, include_noise=True)

    def _winners(self, states: list[TargetState], foretold: PredictorLatency) -> list[Genome | None]:
        """Per target, the best subnet by prediction and measurement together."""
        if not states:
            return []
        latency: LibraryLatency = foretold
        genomes, measured_ms = self._measured()
        excluded = self._evidence.quarantined()
        if excluded:
            genomes = np.concatenate([genomes.reshape(-1, self.space.gene_count), np.stack(excluded)])
            measured_ms = np.concatenate([measured_ms, np.full(len(excluded), np.inf)])
        if len(genomes):
            latency = MeasuredLatency(latency, genomes, measured_ms)
        # Margins differ per target, so what is searched are the targets less their margins.
        bounds = [state.target_ms / (1.0 + self._safety(state)) for state in states]
        order = np.argsort(bounds, kind="stable")
        rng = np.random.default_rng([self._seed, 3, self._told])
        found = self._search(latency, [bounds[i] for i in order], genomes, rng)
        winners: list[Genome | None] = [None] * len(states)
        for place, winner in zip(order.tolist(), found, strict=True):
            winners[place] = winner
        return winners

    def _improves(self, best: float, winner: Genome, gain: float = ACCURACY_GAINS[0]) -> bool:
        """Whether a subnet is worth a measurement where the best one that was measured has this accuracy."""
        evidence = self._evidence.of(winner)
        if evidence.latency_ms is not None and evidence.sure:
            return False
        return self._accuracy_of(winner) > best + gain

    def _best_accuracy(self, state: TargetState) -> float:
        best = self._best_measured(state, self._safety(state))
        return -math.inf if best is None else self._accuracy_of(best)

    def _measured(self) -> tuple[Genomes, Floats]:
        """What is relied on: while there is budget to look again, nothing that was measured badly."""
        return self._evidence.measured(unsure=not self._exploring)

    def _best_measured(self, state: TargetState, safety: float) -> Genome | None:
        """The most accurate measured subnet within the target less its margin; of equals the fastest."""
        genomes, latency = self._measured()
        genomes = genomes[latency * (1.0 + safety) <= state.target_ms]
        if not len(genomes):
            return None
        best: Genome = genomes[int(np.argmax(self._accuracy.predict(genomes)))]
        return best

    def _safety(self, state: TargetState) -> float:
        """The margin on a target, relative: after a miss twice as wide, and wider than the miss went beyond it."""
        typical = statistics.median(self._noise) if self._noise else 0.0
        margin = min(max(_SAFETY_SIGMAS * typical, _LEAST_SAFETY), _MOST_SAFETY)
        for missed_by in state.missed_by:
            margin = min(max(2.0 * margin, 1.5 * missed_by), 0.5)
        return margin

    # -- verification ------------------------------------------------------------------------------------------

    def _verification(self, state: TargetState) -> Proposal | None:
        """The next measurement that may settle a target; None where it is settled without one."""
        if state.failures >= MAX_FAILED_VERIFICATIONS:
            state.status = "missed"
            state.reason = f"{state.failures} re-measurements failed, the last with {self._last_failure}"
            return None
        if state.verifications >= MAX_VERIFICATIONS:
            state.status = "missed"
            state.reason = _why_missed(state)
            return None
        genomes, latency = self._measured()
        choice = self._choice(state)
        if choice is None and len(genomes) and latency[0] <= state.target_ms:
            choice = genomes[0]
        if choice is None and state.verifications:
            # Whatever fitted has missed once. Something may have disturbed the device: give the fastest another chance.
            choice = self._evidence.fastest_within(state.target_ms)
        replacement = self._replacement(state)
        if replacement is not None:
            return replacement
        if choice is None:
            self._give_up(state, genomes, latency)
            return None
        return self._again(choice, state.target_ms)

    def _choice(self, state: TargetState) -> Genome | None:
        """The best of what was measured within a target by its margin; before the first miss a better one may dare."""
        choice = self._best_measured(state, self._safety(state))
        if choice is not None and not state.verifications:
            daring = self._best_measured(state, 0.0)
            if daring is not None and self._accuracy_of(daring) > self._accuracy_of(choice) + _DARED_FOR:
                return daring
        return choice

    def _replacement(self, state: TargetState) -> Proposal | None:
        """After a miss, a subnet that is not measured yet may be better than the best one that is left."""
        if not state.verifications or state.replacements >= MAX_REPLACEMENTS:
            return None
        (winner,) = self._winners([state], self._foretelling(_REPLACEMENT_MARGIN))
        if winner is None or not self._improves(self._best_accuracy(state), winner):
            return None
        return self._propose([winner], "candidate", state.target_ms)[0]

    def _give_up(self, state: TargetState, genomes: Genomes, latency: Floats) -> None:
        if not len(latency):
            state.status = "missed"
            state.reason = f"no measured subnet is left, the last failed with {self._last_failure}"
            return
        if self._evidence.quarantined_within(state.target_ms):
            state.status = "missed"
            state.reason = (
                f"the subnets within it failed when they were measured again, the last with {self._last_failure}"
            )
            return
        fastest = self._architecture(genomes[0])
        state.reason = (
            f"the fastest subnet found ({fastest.fingerprint}) takes {latency[0]:.3g} ms; "
            f"ask for at least {latency[0] * 1.05:.3g} ms"
        )
        state.status = "missed" if state.verifications else "infeasible"

    def _judge(self, proposal: Proposal, genome: Genome, outcome: Measurement | Failed) -> None:
        state = self.target(proposal.target_ms)
        if state is None or state.status == "met":
            return
        # The re-measurement of a stored run ends its exploration too.
        self._exploring = False
        if isinstance(outcome, Failed):
            state.failures += 1
            return
        within = outcome.median_ms <= state.target_ms
        # A device that is slowed down, and within the target for all that, is within it at its own speed too.
        if outcome.quality != "ok" and not within:
            # That says more about the moment than about the subnet.
            state.disturbed += 1
            if state.disturbed <= _DISTURBED_TRIES:
                return
        state.verifications += 1
        state.slowed_down += outcome.quality == "slowed" and not within
        if within:
            state.status, state.reason = "met", ""
            state.sha256 = outcome.model_sha256
        else:
            state.reason = f"over the target when re-measured, at {outcome.median_ms:.3g} ms"
            if outcome.quality == "slowed":
                state.reason += ", while the device was slowed down"
            first_ms = next(iter(self._evidence.of(genome).medians_ms), state.target_ms)
            state.missed_by.append(outcome.median_ms / first_ms - 1.0)
            self._evidence.add_miss(genome, outcome.median_ms)
        self._stand(state, genome, outcome.median_ms)

    # -- standings ---------------------------------------------------------------------------------------------

    def _refresh_standings(self) -> None:
        """Before verification, each target shows its best measured subnet."""
        for state in self._open_targets():
            if state.verifications == 0:
                best = self._choice(state)
                if best is not None:
                    self._stand(state, best, None)

    def _stand(self, state: TargetState, genome: Genome, verified_ms: float | None) -> None:
        if state.genome is None or not np.array_equal(state.genome, genome):
            state.genome = genome
            state.architecture = self._architecture(genome)
            state.accuracy = self._accuracy_of(genome)
            # What was foretold before the first measurement; what was measured before the file was calibrated.
            state.predicted_ms = self._foretold.get(genome.tobytes())
            medians = self._evidence.of(genome).medians_ms
            state.measured_ms = medians[0] if medians else None
        state.verified_ms = verified_ms

    # -- small parts -------------------------------------------------------------------------------------------

    def _accuracy_of(self, genome: Genome) -> float:
        return float(self._accuracy.predict(genome[None])[0])

    def _propose(self, genomes: Sequence[Genome], purpose: Purpose, target_ms: float | None = None) -> list[Proposal]:
        if not genomes:
            return []
        matrix = np.stack(genomes)
        mean, std = self.predict(matrix)
        foretold = zip(mean.tolist(), std.tolist(), self._accuracy.predict(matrix).tolist(), strict=True)
        return [
            Proposal(tuple(genome.tolist()), self._architecture(genome), purpose, target_ms, *of_it)
            for genome, of_it in zip(matrix, foretold, strict=True)
        ]

    def _again(self, genome: Genome, target_ms: float) -> Proposal:
        """A verification, with what was foretold before the subnet was first measured: a prediction knows no answer."""
        return Proposal(
            tuple(genome.tolist()),
            self._architecture(genome),
            "verification",
            target_ms,
            predicted_ms=self._foretold.get(genome.tobytes()),
            predicted_accuracy=self._accuracy_of(genome),
        )

    def _finish(self) -> None:
        self._finished = True
        self._queue.clear()
        self._outstanding.clear()
        for state in self._open_targets():
            state.status = "missed"
            state.reason = state.reason or self.failure_reason or "it was not verified"


def _why_missed(state: TargetState) -> str:
    """Its first words are all that a narrow view shows."""
    if not state.slowed_down:
        return f"over the target in all {state.verifications} re-measurements"
    every = state.slowed_down == state.verifications
    slowed = "all" if every else f"{state.slowed_down} of {state.verifications}"
    return (
        f"slowed down in {slowed} re-measurements, over the target in all {state.verifications}; let nothing else run "
        "on the device, keep it cool, and search again"
    )
