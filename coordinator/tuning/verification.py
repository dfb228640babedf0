"""Settle the targets of one device setting: choose the subnet to measure again, and judge its re-measurement.

A re-measurement is judged by latency as it ran, and not in a lucky moment: latency at the typical speed of the run must
be within the target as well. Where the device ran slower than typically, and would have been within the target
otherwise, it is measured again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from fleetnas.coordinator.records.budget import Purpose
from fleetnas.coordinator.search.problem import AccuracyModel
from fleetnas.coordinator.tuning.observations import Run
from fleetnas.coordinator.tuning.proposal import Genome, Proposal, TargetSolver, TargetState
from fleetnas.coordinator.tuning.setting_latency import SettingLatency
from fleetnas.device_profiles.quantities import MAX_FACTOR
from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.supernet_export.spaces.base import Genomes

#: Re-measurements of one target before it is given up, and new subnets that a miss may still bring in.
MAX_VERIFICATIONS, MAX_FAILED_VERIFICATIONS = 6, 4
MAX_REPLACEMENTS = 3
#: A subnet that was measured within the target, but not by the margin, is re-measured first where it is better by this
#: (top-1, a fraction): it passes often enough to make up for the misses.
_OPTIMISTIC_GAIN = 0.005
#: Re-measurements of one target that a disturbed device may spoil.
_DISTURBED_TRIES = 3
#: Margin on a target in standard deviations of a measurement, and its bounds. Small, so that winners fill their
#: targets: most pass when they are measured again, and a miss costs one more measurement with twice the margin. The
#: typical speed needs more: where it is wrong, every winner is, and no re-measurement shows that.
_SAFETY_SIGMAS, _SPEED_SIGMAS, _LEAST_SAFETY, _MOST_SAFETY = 1.2, 2.0, 0.01, 0.10
#: Margin on a prediction in its standard deviations, for a subnet that stands in after a miss, and for the last one
#: that is tried before a target is called infeasible.
_REPLACEMENT_MARGIN, _LAST_MARGIN = 1.0, -1.5
#: A re-measurement waits for a device that is slower than both: this factor times its typical latency, and this factor
#: times its undisturbed latency.
_WAIT_ABOVE_TYPICAL, _WAIT_ABOVE = 1.03, 1.08
#: A prediction below this share of the fastest subnet's latency is none: a linear model may fall below 0.
_ABSURD = 0.1
#: A target that was met is opened again once the typical speed turns out to put its winner this far beyond it.
_BEYOND = 1.002


class Verification:
    """Settles the targets of one device setting by its measurements."""

    def __init__(
        self,
        latency: SettingLatency,
        accuracy: AccuracyModel,
        search: TargetSolver,
        architecture: Callable[[Genome], Architecture],
        smallest: Genome,
        rng: Callable[[], np.random.Generator],
    ) -> None:
        """`rng` makes the generator of the next search; `architecture` decodes a genome.

        No target is called infeasible before the `smallest` subnet was measured at a known speed.
        """
        self._latency, self._observations = latency, latency.observations
        self._accuracy, self._search, self._architecture, self._rng = accuracy, search, architecture, rng
        self._smallest = smallest
        self.last_failure = ""
        self._winners: dict[float, tuple[Genome, Run]] = {}

    # -- choosing ----------------------------------------------------------------------------------------------

    def safety(self, state: TargetState) -> float:
        """The margin on a target, relative: after a miss twice as wide, and wider than the miss went beyond it."""
        typical = math.hypot(_SAFETY_SIGMAS * self._observations.noise, _SPEED_SIGMAS * self._latency.speed.error)
        margin = min(max(typical, _LEAST_SAFETY), _MOST_SAFETY)
        for missed_by in state.missed_by:
            margin = min(max(2.0 * margin, 1.5 * missed_by), 0.5)
        return margin

    def best_measured(self, state: TargetState, safety: float, *, unsure: bool) -> Genome | None:
        """The most accurate measured subnet within the target less its margin; of equals the fastest.

        One that was within the target although its device was slowed down needs no margin.
        """
        table = self._observations.table(unsure=unsure)
        within = table.typical_ms * (1.0 + safety) <= state.target_ms
        genomes = table.genomes[within | ((table.typical_ms <= state.target_ms) & (table.bound_ms <= state.target_ms))]
        if not len(genomes):
            return None
        best: Genome = genomes[int(np.argmax(self._accuracy.predict(genomes)))]
        return best

    def choice(self, state: TargetState, *, unsure: bool) -> Genome | None:
        """The best of what was measured within a target by its margin; before the first miss a better one without."""
        choice = self.best_measured(state, self.safety(state), unsure=unsure)
        if choice is not None and not state.verifications:
            optimistic = self.best_measured(state, 0.0, unsure=unsure)
            if optimistic is not None and self.accuracy(optimistic) > self.accuracy(choice) + _OPTIMISTIC_GAIN:
                return optimistic
        return choice

    def accuracy(self, genome: Genome) -> float:
        """Predicted top-1, a fraction."""
        return float(self._accuracy.predict(genome[None])[0])

    def improves(self, best: float, winner: Genome, gain: float) -> bool:
        """Whether a subnet is worth a measurement where the best one that was measured has this accuracy."""
        return not self._observations.of(winner).sure and self.accuracy(winner) > best + gain

    # -- asking ------------------------------------------------------------------------------------------------

    def next(self, state: TargetState, gain: float) -> Proposal | None:
        """The next measurement that may settle a target; None where it is settled without one.

        A subnet that is not measured yet must be better than what is by `gain` (top-1, a fraction).
        """
        if state.failures >= MAX_FAILED_VERIFICATIONS:
            state.status = "missed"
            state.reason = f"{state.failures} re-measurements failed, the last with {self.last_failure}"
            return None
        if state.verifications >= MAX_VERIFICATIONS:
            state.status, state.reason = "missed", _why_missed(state)
            return None
        table = self._observations.table(unsure=True)
        choice = self.choice(state, unsure=True)
        if choice is None and len(table) and table.typical_ms[0] <= state.target_ms:
            choice = table.genomes[0]
        if choice is None and state.verifications:
            # Every subnet that fitted has missed once. The device may have been disturbed: try the fastest once more.
            choice = self._fastest_of_unknown_speed(state.target_ms)
        replacement = self._replacement(state, choice, gain)
        if replacement is not None:
            return replacement
        if choice is None:
            self._give_up(state)
            return None
        return self._again(choice, state.target_ms)

    def _replacement(self, state: TargetState, choice: Genome | None, gain: float) -> Proposal | None:
        """Propose a new subnet after a miss, where no measured one fits, or at another lasting speed."""
        tried = state.verifications > 0 or choice is None or self._observations.changed_for_good
        if not tried or state.replacements >= MAX_REPLACEMENTS:
            return None
        margin = _LAST_MARGIN if choice is None else _REPLACEMENT_MARGIN
        target_ms = state.target_ms / (1.0 + (self.safety(state) if choice is not None else 0.0))
        if choice is None and not self._knows_smallest():
            (again,) = self.propose([self._smallest], "candidate", state.target_ms)
            return replace(again, wait_above=_WAIT_ABOVE)
        (winner,) = self._latency.winners(
            self._search, [target_ms], self._rng(), self._latency.undisturbed_model(margin)
        )
        measured = self.best_measured(state, self.safety(state), unsure=True)
        best = -math.inf if measured is None else self.accuracy(measured)
        if winner is None or not self.improves(best, winner, gain):
            return None
        return self.propose([winner], "candidate", state.target_ms)[0]

    def _fastest_of_unknown_speed(self, target_ms: float) -> Genome | None:
        """The fastest subnet that was within a target as it ran, unless it is known to be beyond it typically."""
        genome = self._observations.fastest_within(target_ms)
        if genome is None or any(run.undisturbed_ms is not None for run in self._observations.of(genome).runs):
            return None
        return genome

    def _knows_smallest(self) -> bool:
        """Whether the smallest subnet was measured at a known speed, or is not to be tried again."""
        seen = self._observations.of(self._smallest)
        return seen.quarantined or any(run.undisturbed_ms is not None for run in seen.runs)

    def propose(self, genomes: Sequence[Genome], purpose: Purpose, target_ms: float | None = None) -> list[Proposal]:
        """Proposals to measure subnets for the first time, or once more."""
        if not genomes:
            return []
        matrix: Genomes = np.stack(genomes)
        mean, deviation = self._latency.predict(matrix)
        table = self._observations.table(unsure=True)
        least_ms = _ABSURD * float(table.typical_ms[0]) if len(table) else 0.0
        top1 = self._accuracy.predict(matrix).tolist()
        return [
            Proposal(
                tuple(genome.tolist()),
                self._architecture(genome),
                purpose,
                target_ms,
                predicted_ms=ms if ms > least_ms else None,
                predicted_std_ms=std_ms if ms > least_ms else None,
                predicted_accuracy=accuracy,
            )
            for genome, ms, std_ms, accuracy in zip(matrix, mean.tolist(), deviation.tolist(), top1, strict=True)
        ]

    def _again(self, genome: Genome, target_ms: float) -> Proposal:
        """Propose a re-measurement that waits for a slow device; predicted without this subnet's own measurements."""
        undisturbed_ms = max(float(self._latency.predict_undisturbed(genome[None])[0][0]), 1e-9)
        typical = self._latency.speed.slowdown(undisturbed_ms)
        return Proposal(
            tuple(genome.tolist()),
            self._architecture(genome),
            "verification",
            target_ms,
            predicted_ms=self._latency.predict_without_itself(genome),
            predicted_accuracy=self.accuracy(genome),
            wait_above=min(max(_WAIT_ABOVE, _WAIT_ABOVE_TYPICAL * typical), MAX_FACTOR),
        )

    # -- judging -----------------------------------------------------------------------------------------------

    def judge(self, state: TargetState, genome: Genome, run: Run | None) -> None:
        """Judge a target by its re-measurement, which is among the observations already; None where it failed."""
        if state.status == "met":
            self.open_again(state)
        if run is None:
            state.failures += 1
            return
        typical_ms = self._observations.typical_ms(run)
        ran_within = run.median_ms <= state.target_ms
        typically_within = typical_ms is None or typical_ms <= state.target_ms
        disturbed = not ran_within and (typically_within or run.noisy)
        if disturbed:
            # That says more about the moment than about the subnet.
            state.disturbed += 1
            if state.disturbed <= _DISTURBED_TRIES:
                return
        state.verifications += 1
        if ran_within and typically_within:
            state.status, state.reason = "met", ""
            state.sha256 = run.model_sha256
            self._winners[state.target_ms] = (genome, run)
        else:
            state.slowed_down += disturbed
            state.reason = _why_not(state, run, typical_ms, disturbed=disturbed)
            state.missed_by.append(self._observations.exceeds(self._observations.of(genome), run))
            self._observations.add_miss(genome, run)
        self.stand(state, genome, run.median_ms, typical_ms)

    def reconsider(self, states: Sequence[TargetState]) -> None:
        """Open targets again where measurements that came later change what was decided.

        Winners that are beyond their targets at the speed that turned out to be typical, and targets that were given up
        and have a subnet within them by now.
        """
        for state in states:
            if state.given_up and self.choice(state, unsure=True) is not None:
                state.status, state.reason, state.given_up = "open", "", False
            won = self._winners.get(state.target_ms)
            if state.status == "met" and won is not None:
                typical_ms = self._observations.typical_ms(won[1])
                if typical_ms is not None and typical_ms > _BEYOND * state.target_ms:
                    self.open_again(state)

    def open_again(self, state: TargetState) -> None:
        """Open a target again that was met."""
        genome, run = self._winners.pop(state.target_ms)
        typical_ms = self._observations.typical_ms(run)
        state.status, state.sha256, state.typical_ms = "open", None, typical_ms
        state.reason = _why_not(state, run, typical_ms, disturbed=False)
        self._observations.add_miss(genome, run)

    def adopt_better_winners(self, states: Sequence[TargetState]) -> None:
        """Let a better winner of another target serve a target that it was measured within as well.

        So no looser target ends with a less accurate winner than a tighter one.
        """
        met = [replace(state) for state in states if state.status == "met"]
        for state in states:
            within = [
                winner
                for winner in met
                if (winner.verified_ms or math.inf) <= state.target_ms
                and (winner.typical_ms is None or winner.typical_ms <= state.target_ms)
            ]
            best = max(within, key=lambda winner: winner.accuracy or 0.0, default=None)
            if best is None or (state.status == "met" and (state.accuracy or 0.0) >= (best.accuracy or 0.0)):
                continue
            state.status, state.reason = "met", ""
            state.note = f"the winner of {best.target_ms:g} ms, no better one was verified"
            for name in ("genome", "architecture", "predicted_ms", "measured_ms", "verified_ms", "typical_ms"):
                setattr(state, name, getattr(best, name))
            state.accuracy, state.sha256 = best.accuracy, best.sha256

    def predict(self, states: Sequence[TargetState]) -> None:
        """Say what the predictor makes of the subnets that targets stand at, their own measurements left out."""
        for state in states:
            if state.genome is not None:
                state.predicted_ms = self._latency.predict_without_itself(state.genome)

    def stand(
        self, state: TargetState, genome: Genome, verified_ms: float | None = None, typical_ms: float | None = None
    ) -> None:
        """Set a target's present subnet and its latencies."""
        state.genome = genome
        state.architecture = self._architecture(genome)
        state.accuracy = self.accuracy(genome)
        # Measured before the file was calibrated.
        runs = self._observations.of(genome).runs
        state.measured_ms = runs[0].median_ms if runs else None
        state.verified_ms, state.typical_ms = verified_ms, typical_ms

    # -- giving up ---------------------------------------------------------------------------------------------

    def explain_given_up(self, states: Sequence[TargetState]) -> None:
        """Say again why targets were given up, by all measurements: a later one may be the fastest."""
        for state in states:
            if state.given_up:
                self._give_up(state)

    def _give_up(self, state: TargetState) -> None:
        state.given_up = True
        fastest = self._observations.fastest()
        state.status = "missed"
        if fastest is None or fastest.fastest_ms is None:
            state.reason = f"no measured subnet is left, the last failed with {self.last_failure}"
            return
        if self._observations.quarantined_within(state.target_ms):
            state.reason = (
                f"the subnets within it failed when they were measured again, the last with {self.last_failure}"
            )
            return
        name, ran_ms = self._architecture(fastest.genome).fingerprint, fastest.fastest_ms
        known = [ms for subnet in self._observations for run in subnet.runs
                 if (ms := self._observations.undisturbed_ms(run)) is not None]  # fmt: skip
        typical_ms = self._observations.latency_ms(fastest) or ran_ms
        ask = f"ask for at least {1.05 * max(ran_ms, typical_ms):.3g} ms"
        if not known:
            state.reason = (
                f"the fastest measurement ({name}) took {ran_ms:.3g} ms, and the device was disturbed all the time; "
                "let nothing else run on it, keep it cool, and search again"
            )
        elif state.slowed_down and state.slowed_down == state.verifications:
            state.reason = _why_missed(state)
        elif ran_ms <= state.target_ms:
            state.reason = (
                f"the fastest subnet found ({name}) took {ran_ms:.3g} ms at best, and takes {typical_ms:.3g} ms at "
                f"the typical speed of this run; {ask}"
            )
        elif min(known) <= state.target_ms:
            state.reason = (
                f"the fastest subnet found ({name}) took {ran_ms:.3g} ms; only an undisturbed device would be within "
                f"it, at {min(known):.3g} ms; {ask}"
            )
        else:
            state.reason = f"the fastest subnet found ({name}) takes {ran_ms:.3g} ms; {ask}"
            tried = self._knows_smallest() and not self._observations.of(self._smallest).quarantined
            state.status = "infeasible" if tried and not state.verifications else "missed"


def _why_not(state: TargetState, run: Run, typical_ms: float | None, *, disturbed: bool) -> str:
    if run.median_ms <= state.target_ms and typical_ms is not None:
        return (
            f"within it when re-measured, at {run.median_ms:.3g} ms, while the device was faster than it "
            f"typically is: {typical_ms:.3g} ms at the typical speed"
        )
    slowed = ", while the device was slowed down" if disturbed else ""
    return f"over the target when re-measured, at {run.median_ms:.3g} ms{slowed}"


def _why_missed(state: TargetState) -> str:
    """Reason of a missed target; a narrow view shows its first words only."""
    if not state.slowed_down:
        return f"not met in {state.verifications} re-measurements; the last: {state.reason}"
    every = state.slowed_down == state.verifications
    slowed = "all" if every else f"{state.slowed_down} of {state.verifications}"
    return (
        f"slowed down in {slowed} re-measurements, not met in any of {state.verifications}; let nothing else run on "
        "the device, keep it cool, and search again"
    )
