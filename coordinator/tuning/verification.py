"""Settle the targets of one device setting: propose the subnet to measure again, and judge its re-measurement.

A re-measurement is judged by latency as it ran, and not in a lucky moment: latency at the typical speed of the run must
be within the target as well. Where the device ran slower than typically, and would have been within the target
otherwise, it is measured again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from fleetnas.coordinator.records.target_status import TargetStatus
from fleetnas.coordinator.tuning.better_winners import MAX_FAILED_VERIFICATIONS, Challengers, adopt_better_winners
from fleetnas.coordinator.tuning.candidates import LEAST_GAIN
from fleetnas.coordinator.tuning.floor_search import FloorSearch
from fleetnas.coordinator.tuning.judgement import DISTURBED_TRIES, Judgement, judge_run
from fleetnas.coordinator.tuning.kind_verdicts import beyond, given_up_kind, judge_cost, untold, untold_reason
from fleetnas.coordinator.tuning.miss_reasons import given_up, remeasured_beyond, remeasured_in_vain
from fleetnas.coordinator.tuning.proposal import Genome, Proposal, TargetSolver
from fleetnas.coordinator.tuning.proposer import WAIT_ABOVE, Proposer
from fleetnas.coordinator.tuning.session_noise import noise_of
from fleetnas.coordinator.tuning.setting_latency import SettingLatency
from fleetnas.coordinator.tuning.shortlist import Shortlists
from fleetnas.coordinator.tuning.subnet_choice import SubnetChoice
from fleetnas.coordinator.tuning.subnet_observations import Run
from fleetnas.coordinator.tuning.target_costs import shown_value
from fleetnas.coordinator.tuning.target_state import ShownValue, TargetState, is_floor
from fleetnas.fleet_protocol.messages import Measurement

#: Re-measurements of one target before it is given up, and new subnets that a miss may still bring in.
MAX_VERIFICATIONS = 6
MAX_REPLACEMENTS = 3
#: Verifications of subnets that are better than the winner of a target.
MAX_CHALLENGES = 4
#: Margins on a prediction in its standard deviations: the first for a subnet that stands in after a miss, the others,
#: in this order, where no measured subnet is within a target: any winner is better than none.
_LAST_MARGINS = (1.0, 0.0, -1.5)
#: When a winner is judged, its latency at the typical speed is taken to be wrong by this many standard errors of that
#: speed and of the measurement, and at most by this: where little is known, margins would leave little of a target.
_CAUTION_SIGMAS, _OWN_SIGMAS, _MOST_CAUTION = 1.5, 0.5, 0.03
#: A target that was met is opened again once the typical speed turns out to put its winner this far beyond it.
_BEYOND = 1.002


class Verification:
    """Settles targets by the measurements of a device setting."""

    def __init__(
        self,
        latency: SettingLatency,
        choice: SubnetChoice,
        proposer: Proposer,
        solver: TargetSolver,
        shortlists: Shortlists,
        ends: Sequence[Genome],
        rng: Callable[[], np.random.Generator],
    ) -> None:
        """`rng` makes the generator of the next search; `ends` are the smallest and the largest subnet.

        `shortlists` go before predicted accuracy wherever they hold candidates.
        No target is called infeasible before the smallest subnet was measured at a known speed.
        """
        self._latency, self._observations = latency, latency.observations
        self._choice, self._proposer, self._solver, self._rng = choice, proposer, solver, rng
        self._shortlists = shortlists
        self._smallest, self._largest = ends
        self._challengers = Challengers(latency.observations, choice, shortlists)
        self._floors = FloorSearch(latency.space, latency, choice, solver, rng)
        self._last_failure = ""
        self._winners: dict[tuple[float, str], tuple[Genome, Run]] = {}

    @property
    def last_failure(self) -> str:
        """Description of the latest failed measurement; empty where none failed."""
        return self._last_failure

    def note_failure(self, description: str) -> None:
        """Keep the description of a failed measurement, for explanations."""
        self._last_failure = description

    # -- asking ------------------------------------------------------------------------------------------------

    def proposals(self, states: Sequence[TargetState]) -> list[Proposal]:
        """Return the next measurement of each open target; a target that is settled without one is decided."""
        asked = (self._next(state) for state in states if state.status is TargetStatus.OPEN)
        return [proposal for proposal in asked if proposal is not None]

    def round(self, states: Sequence[TargetState]) -> list[Proposal]:
        """Return the next measurements; none where every target is decided, and no better winner is likely.

        Open targets come first, then those that later measurements open again, then challenges of winners.
        """
        found = self.proposals(states)
        if not found:
            self.reconsider(states)
            found = self.proposals(states)
        return found or self._challenges(states)

    def _challenges(self, states: Sequence[TargetState]) -> list[Proposal]:
        """Return re-measurements of measured subnets that are better than the winners, and likely to be within too."""
        again, found = self._proposer.propose_again, self._challengers.best
        return [again(genome, state, waits=False) for state in states if (genome := found(state, states)) is not None]

    def _next(self, state: TargetState) -> Proposal | None:
        """Return the next measurement that may settle a target; None where it is settled without one."""
        if state.failures >= MAX_FAILED_VERIFICATIONS:
            state.miss(f"{state.failures} re-measurements failed, the last with {self._last_failure}")
            return None
        if state.verifications >= MAX_VERIFICATIONS:
            state.miss(remeasured_in_vain(state))
            return None
        listed = self._shortlists.best(state)
        if listed is not None and listed.measured:
            return self._proposer.propose_again(listed.genome, state, waits=self.waits(state))
        if listed is not None:
            return self._proposer.propose([listed.genome], "candidate", state)[0]
        choice = self._choice.choice(state, unsure=True)
        if is_floor(state):
            return self._next_of_floor(state, choice)
        if choice is None:
            choice = self._choice.fastest_within(state)
        if choice is None and state.verifications and state.target is None:
            # Every subnet that fitted has missed once. The device may have been disturbed: try the fastest once more.
            choice = self._fastest_of_unknown_speed(state.target_ms)
        replacement = self._replacement(state, choice)
        if replacement is not None:
            return replacement
        if choice is None:
            self._give_up(state)
            return None
        return self._proposer.propose_again(choice, state, waits=self.waits(state))

    def _next_of_floor(self, state: TargetState, choice: Genome | None) -> Proposal | None:
        """Return the next measurement for an accuracy that is to be kept: of the best measured subnet, or a new one."""
        if choice is not None:
            return self._proposer.propose_again(choice, state, waits=False)
        found = self._floors.find(state) if state.replacements < MAX_REPLACEMENTS else []
        if found:
            return self._proposer.propose(found[:1], "candidate", state)[0]
        self._give_up(state)
        return None

    def waits(self, state: TargetState) -> bool:
        """Whether a target's next re-measurement waits for a fast device: once a disturbance has spoiled one.

        Those that do not wait see the device at any moment, and count towards its typical speed.
        """
        return state.disturbed > 0 and state.status is TargetStatus.OPEN

    def awaited(self, proposal: Proposal, state: TargetState | None, measured: Measurement) -> bool:
        """Whether a measurement waited for a fast moment and found one: it says nothing of the typical speed."""
        waited = proposal.purpose == "verification" and (state is None or self.waits(state))
        return waited and measured.quality != "slowed"

    def _replacement(self, state: TargetState, choice: Genome | None) -> Proposal | None:
        """Propose a new subnet after a miss, where no measured one fits, or at another lasting speed."""
        tried = state.verifications > 0 or choice is None or self._observations.changed_for_good
        if not tried or state.replacements >= MAX_REPLACEMENTS:
            return None
        margins = _LAST_MARGINS if choice is None else _LAST_MARGINS[:1]
        limit_ms = self._choice.limit_ms(state) / (1.0 + (self._choice.safety(state) if choice is not None else 0.0))
        if choice is None and not self._knows_smallest():
            (again,) = self._proposer.propose([self._smallest], "candidate", state)
            return replace(again, wait_above=WAIT_ABOVE)
        measured = self._choice.best_measured(state, self._choice.safety(state), unsure=True)
        best = -math.inf if measured is None else self._choice.accuracy(measured)
        predicted = self._latency.undisturbed_model()
        for sigmas in margins:
            model = predicted.at_margin(sigmas)
            (winner,) = self._latency.winners(self._solver, [limit_ms], self._rng(), model)
            if winner is None or not self._choice.is_open(winner):
                continue
            if self._choice.accuracy(winner) > best + LEAST_GAIN:
                return self._proposer.propose([winner], "candidate", state)[0]
        return None

    def _fastest_of_unknown_speed(self, target_ms: float) -> Genome | None:
        """Return the fastest subnet that ran within a target, unless it is known to be beyond it typically."""
        genome = self._observations.fastest_within(target_ms)
        if genome is None or any(run.undisturbed_ms is not None for run in self._observations.of(genome).runs):
            return None
        return genome

    def _knows_smallest(self) -> bool:
        """Whether the smallest subnet was measured at a known speed, or is not to be tried again."""
        seen = self._observations.of(self._smallest)
        return seen.quarantined or any(run.undisturbed_ms is not None for run in seen.runs)

    def show_best(self, states: Sequence[TargetState], *, unsure: bool) -> None:
        """Let each target that was not verified yet stand at the measured subnet that it would be verified with now."""
        for state in states:
            listed = self._shortlists.best(state)
            best = (
                listed.genome if listed is not None and listed.measured else self._choice.choice(state, unsure=unsure)
            )
            if best is not None and state.verifications == 0:
                self.show(state, best)

    # -- judging -----------------------------------------------------------------------------------------------

    def judge(self, state: TargetState, genome: Genome, run: Run | None) -> None:
        """Judge a target by its re-measurement, which is among the observations already; None where it failed."""
        if run is None:
            state.count_failure()
            return
        run = run.as_it_ran  # of a class: the board that decides is judged by its own latency
        if state.status is TargetStatus.MET:
            if self._choice.accuracy(genome) > (state.accuracy or 0.0):
                self._judge_challenge(state, genome, run)
                return
            self._withdraw(state)
        typical_ms = self._observations.typical_ms(run)
        untold = untold_reason(state, run)
        if untold:
            state.miss(untold)
            return
        judgement = self._judgement(state, run)
        disturbed = judgement is Judgement.DISTURBED
        if disturbed and state.count_disturbed() <= DISTURBED_TRIES:
            return
        state.count_verification()
        if judgement is Judgement.WITHIN:
            state.meet(run.model_sha256)
            self._winners[state.key] = (genome, run)
        else:
            missed_by = self._observations.exceeds(self._observations.of(genome), run)
            reason = self._beyond_reason(state, run, typical_ms, disturbed=disturbed)
            state.count_miss(missed_by, reason, slowed_down=disturbed)
            self._observations.add_miss(genome, run)
        self.show(state, genome, run)

    def _judgement(self, state: TargetState, run: Run) -> Judgement:
        """Compare a re-measurement with its target; what it and the typical speed may be wrong by counts against it."""
        typical_ms = self._observations.typical_ms(run)
        cautious_ms = None if typical_ms is None else typical_ms * (1.0 + self._caution(run))
        if state.target is not None:
            return judge_cost(state.target, run, cautious_ms)
        return judge_run(state.target_ms, run, cautious_ms)

    def _caution(self, run: Run) -> float:
        """Return what the latency of a run at the typical speed may be wrong by, relative."""
        own = _OWN_SIGMAS * noise_of(run, self._observations.session_scatter)
        return min(math.hypot(_CAUTION_SIGMAS * self._latency.speed.error, own), _MOST_CAUTION)

    def _judge_challenge(self, state: TargetState, genome: Genome, run: Run) -> None:
        """Let a better subnet take the winner's place if it is within the target in this run and by its margin."""
        if state.count_challenge() >= MAX_CHALLENGES:
            state.end_challenges()
        judgement = self._judgement(state, run)
        if judgement is Judgement.BEYOND:
            self._observations.add_miss(genome, run)
        elif judgement is Judgement.DISTURBED:
            state.end_challenges()
        elif judgement is Judgement.WITHIN and self._choice.fits(state, genome):
            state.meet(run.model_sha256)
            self._winners[state.key] = (genome, run)
            self.show(state, genome, run)

    def _beyond_reason(self, state: TargetState, run: Run, typical_ms: float | None, *, disturbed: bool) -> str:
        if state.target is not None:
            return beyond(state.target, run, typical_ms)
        return remeasured_beyond(state, run, typical_ms, disturbed=disturbed, caution=self._caution(run))

    def decide_untold(self, states: Sequence[TargetState]) -> None:
        """Give up the open targets that are about something that no measurement of this device told."""
        for state in states:
            if state.status is TargetStatus.OPEN and state.target is not None and not self._choice.tells(state):
                state.miss(untold(state.target))

    def reconsider(self, states: Sequence[TargetState]) -> None:
        """Open targets again where later measurements contradict the decision.

        Winners that are beyond their targets at the speed that turned out to be typical, and targets that were given up
        and have a subnet within them by now.
        """
        for state in states:
            if state.given_up and self._choice.choice(state, unsure=True) is not None:
                state.reopen()
            won = self._winners.get(state.key)
            if state.status is TargetStatus.MET and won is not None:
                typical_ms = self._observations.typical_ms(won[1])
                if typical_ms is not None and self._is_beyond(state, won[1], typical_ms):
                    self._withdraw(state)

    def _is_beyond(self, state: TargetState, run: Run, typical_ms: float) -> bool:
        """Whether a winner turned out to be beyond its target at the typical speed."""
        if state.target is None:
            return typical_ms > _BEYOND * state.target_ms
        return judge_cost(state.target, run, typical_ms / _BEYOND) is not Judgement.WITHIN

    def _withdraw(self, state: TargetState) -> None:
        """Open a target again that was met."""
        genome, run = self._winners.pop(state.key)
        typical_ms = self._observations.typical_ms(run)
        state.withdraw(self._beyond_reason(state, run, typical_ms, disturbed=False), typical_ms)
        self._observations.add_miss(genome, run)

    # -- present subnets ---------------------------------------------------------------------------------------

    def predict(self, states: Sequence[TargetState]) -> None:
        """Renew the predictions of the subnets that targets stand at, their own measurements left out."""
        for state in states:
            if state.genome is not None:
                state.predict(self._latency.predict_without_itself(state.genome))

    def show(self, state: TargetState, genome: Genome, run: Run | None = None) -> None:
        """Set a target's present subnet, with what its re-measurement showed."""
        subnet = self._choice.subnet(genome, self._proposer.architecture(genome))
        if run is None:
            state.choose(subnet)
            return
        typical_ms = self._observations.typical_ms(run)
        shown = ShownValue()
        if state.target is not None:
            shown = shown_value(run, state.target, typical_ms, subnet.accuracy or 0.0)
        state.choose(subnet, run.median_ms, typical_ms, shown)

    # -- the end -----------------------------------------------------------------------------------------------

    def complete(self, states: Sequence[TargetState]) -> None:
        """Complete targets that are all decided: reasons and predictions by all measurements, the best winners."""
        for state in states:
            if state.given_up:  # a later measurement may be the fastest
                self._give_up(state)
        self.predict(states)
        adopt_better_winners(states, self._shortlists)
        largest_ms = self._largest_ms()
        for state in states:
            met = state.status is TargetStatus.MET and state.target is None
            if largest_ms is not None and met and largest_ms <= state.target_ms:
                state.remark(f"constrains nothing: the largest subnet takes {largest_ms:.3g} ms")

    def _largest_ms(self) -> float | None:
        """Return the latency of the largest subnet at the typical speed, ms; None where it is not known."""
        largest = self._observations.of(self._largest)
        known = any(run.undisturbed_ms is not None for run in largest.runs)
        return self._observations.latency_ms(largest) if known else None

    def _give_up(self, state: TargetState) -> None:
        fastest = self._observations.fastest()
        name = self._proposer.architecture(fastest.genome).fingerprint if fastest is not None else ""
        reason = given_up(state, self._observations, name, self._last_failure)
        if state.target is not None:
            reason = given_up_kind(state.target, self._choice.least_cost(state.target), name, state.reason)
        tried = self._knows_smallest() and not self._observations.of(self._smallest).quarantined
        state.give_up(reason.text, infeasible=reason.too_fast and tried and not state.verifications)
