"""The search on one device setting as pure ask and tell: no network, clock, threads or printing.

First comes the initial design; then, round by round, the predicted winners of every target that are not yet measured,
with predictions replaced by measurements where there are any; then each target's winner is measured once more, as the
file that ships. A miss counts and the next best is tried.

Proposals are a function of the seed and of the outcomes told, whatever their order within a round. So telling a stored
run again resumes it, and it ends as it would have ended.
"""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

from fleetnas.coordinator.predictors.metrics import HeldOutError
from fleetnas.coordinator.records.budget import counts_against_budget
from fleetnas.coordinator.records.target_status import TargetStatus
from fleetnas.coordinator.records.targets import TargetRequest
from fleetnas.coordinator.search.problem import AccuracyModel
from fleetnas.coordinator.tuning.automatic_targets import AutomaticTargets
from fleetnas.coordinator.tuning.board_speeds import BoardSpeeds
from fleetnas.coordinator.tuning.candidates import CandidateSearch
from fleetnas.coordinator.tuning.design_progress import DesignProgress
from fleetnas.coordinator.tuning.initial_design import InitialDesign
from fleetnas.coordinator.tuning.invariants import check_proposals, check_targets
from fleetnas.coordinator.tuning.miss_reasons import all_failed, first_ones_failed
from fleetnas.coordinator.tuning.proposal import Proposal, ProposalKey, TargetSolver
from fleetnas.coordinator.tuning.proposer import Proposer
from fleetnas.coordinator.tuning.setting_latency import SettingLatency
from fleetnas.coordinator.tuning.setting_tuner import LoneSetting, TunerPhase
from fleetnas.coordinator.tuning.shortlist import Shortlists
from fleetnas.coordinator.tuning.subnet_choice import SubnetChoice
from fleetnas.coordinator.tuning.target_costs import percentiles_to_ask
from fleetnas.coordinator.tuning.target_state import TargetState, states_of
from fleetnas.coordinator.tuning.typical_speed import TypicalSpeed
from fleetnas.coordinator.tuning.verification import Verification
from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.fleet_protocol.messages import Failed, Measurement, MeasurementProtocol
from fleetnas.supernet_export.spaces.base import Genomes

#: Failures without a single measurement after which the device setting is given up.
MAX_INITIAL_FAILURES = 6


class DeviceTuner(LoneSetting):
    """One device setting's search; a `SettingTuner`."""

    def __init__(
        self,
        design: InitialDesign,
        accuracy: AccuracyModel,
        targets: TargetRequest,
        solver: TargetSolver,
        *,
        budget: int = 40,
        rerank: int = 0,
        protocol: MeasurementProtocol = MeasurementProtocol(),  # noqa: B008 - it is frozen
        speeds: BoardSpeeds | None = None,
    ) -> None:
        """`budget` counts all measurements but verifications, those of the initial design included.

        By `protocol` the search knows how long a subnet's measurement takes; `speeds` are those of a class of boards.
        With `rerank`, that many candidates per target are chosen among by the accuracies that `tell_accuracy` takes.
        Space, seed, prior and bounds are those of the `design`; `solver` must keep the bounds too.
        """
        self.space, self.budget = design.space, budget
        self.failure_reason = ""
        self.measurements = self.failures = 0
        self._request, self._seed = targets, design.seed
        self._latency = SettingLatency(design, speeds)
        self._choice = SubnetChoice(self._latency, accuracy)
        self._proposer = Proposer(self._latency, accuracy, design.architecture, percentiles_to_ask(targets.percentiles))
        self._design = DesignProgress(design.subnets, self._latency.observations)
        self._candidates = CandidateSearch(self._latency, self._choice, self._proposer, solver, self._rng, protocol)
        self._shortlists = Shortlists(rerank, self._latency, self._choice, solver, lambda: self._rng(4))
        self._verification = Verification(
            self._latency, self._choice, self._proposer, solver, self._shortlists, design.ends, self._rng
        )
        self._targets = states_of(targets)
        self._automatic = AutomaticTargets(targets, self._latency, design.ends, solver, accuracy, design.seed)
        self._regime_unix_s = 0.0  # of the device when exploration ended, and since
        self._design_told: int | None = None  # outcomes told when the initial design was complete
        self._current = True  # whether the targets' best subnets are those of all measurements
        self._told = 0
        self._queue: deque[Proposal] = deque()
        self._outstanding: dict[ProposalKey, Proposal] = {}
        self._exploring = True
        self._finished = self._abandoned = False

    # -- state -------------------------------------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        """Whether nothing is left to ask."""
        return self._finished

    @property
    def phase(self) -> TunerPhase:
        """Present phase of the search."""
        if self._finished:
            return "done"
        if self._design_told is None:
            return "initial-design"
        return "search" if self._exploring else "verification"

    @property
    def targets(self) -> list[TargetState]:
        """Every target with its best subnet so far; automatic ones from the end of the initial design on."""
        if not self._current and not self._abandoned:
            self._current = True
            if self._design_told is not None:  # before its verification, a target shows its best measured subnet
                self._verification.show_best(self._open_targets(), unsure=not self._exploring)
        return self._targets

    @property
    def targets_note(self) -> str:
        """A remark on automatic targets: why they are fewer, or others than at first."""
        return self._automatic.note

    def predict_targets(self) -> None:
        """Renew the predictions of the subnets that targets stand at; costs as much as learning all measurements."""
        if not self._abandoned:
            self._verification.predict(self.targets)

    def target_of(self, proposal: Proposal) -> TargetState | None:
        """Return the target of a proposal as its verifications left it; one that has none yet may stand better."""
        return next((state for state in self._targets if proposal.is_for(state)), None)

    @property
    def decided(self) -> list[TargetState]:
        """Every target once the search has finished: before that, a target that is met may be opened again."""
        return self._targets if self._finished else []

    @property
    def quarantined(self) -> int:
        """Number of subnets that failed twice and are left alone."""
        return len(self._latency.observations.quarantined())

    @property
    def fastest_ms(self) -> float | None:
        """The least latency that was measured, as it ran."""
        fastest = self._latency.observations.fastest()
        return fastest.fastest_ms if fastest is not None else None

    @property
    def typical_speed(self) -> TypicalSpeed:
        """Typical slow-down of the device in this run."""
        return self._latency.speed

    def held_out_error(self) -> HeldOutError:
        """Return the predictor's own error: each measured subnet predicted from all others, at undisturbed speed."""
        return HeldOutError(None, None, 0) if self._abandoned else self._latency.held_out_error()

    def predict(self, genomes: Genomes) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return mean and standard deviation of a measurement at undisturbed speed, ms, each (n,)."""
        return self._latency.predict_undisturbed(genomes)

    @property
    def needs_planning(self) -> bool:
        """Whether the next `ask` has to think (some 0.2 s) rather than return a planned round."""
        return not self._finished and not self._queue and not self._outstanding

    # -- ask and tell ------------------------------------------------------------------------------------------

    def ask(self, count: int) -> list[Proposal]:
        """Return up to `count` subnets to measure next; none while a round's last ones are being measured."""
        if self.needs_planning:
            self._queue.extend(self._next_round())
            self._latency.release()
        asked = [self._queue.popleft() for _ in range(min(count, len(self._queue)))]
        self._outstanding.update((proposal.key, proposal) for proposal in asked)
        return asked

    def wanted_accuracies(self) -> list[Architecture]:
        """Return the candidates that `ask` waits for: tell the accuracy of each on selection images, then ask again."""
        return [] if self._finished else [self._proposer.architecture(genome) for genome in self._shortlists.wanted()]

    def tell_accuracy(self, architecture: Architecture, accuracy: float | None) -> None:
        """Take a candidate's accuracy on selection images, a fraction; None where its file cannot be evaluated."""
        self._shortlists.tell(self.space.encode([architecture])[0], accuracy)
        self._current = False

    def expect(self, proposal: Proposal) -> None:
        """Take in a proposal of an earlier coordinator that has no outcome yet: its round goes on."""
        if not self._finished:
            self._outstanding[proposal.key] = proposal

    def abandon(self, reason: str) -> None:
        """End the search at once, without computing anything: it raised an exception, which `reason` describes."""
        self._abandoned = self._finished = True
        self.failure_reason = reason
        self._queue.clear()
        self._outstanding.clear()
        for state in self._open_targets():
            state.miss(reason)

    def tell(self, proposal: Proposal, outcome: Measurement | Failed) -> None:
        """Take the outcome of a proposal, also of one that a stored run asked for."""
        if self._abandoned:
            return
        self._follow(proposal)
        self._told += 1
        self._outstanding.pop(proposal.key, None)
        self._queue = deque(waiting for waiting in self._queue if waiting.key != proposal.key)
        genome = np.array(proposal.genome, dtype=np.int16)
        self.measurements += counts_against_budget(proposal.purpose, proposal.target_ms, proposal.target)
        if proposal.purpose == "initial-design":
            self._design.count_try(genome)
        state = self.target_of(proposal)
        run = None
        if isinstance(outcome, Failed):
            self.failures += 1
            detail = f" ({outcome.detail})" if outcome.detail else ""
            self._verification.note_failure(f"{outcome.reason}{detail}")
            self._latency.add_failure(genome)
        else:
            run = self._latency.add(genome, outcome, awaited=self._verification.awaited(proposal, state, outcome))
        if self._finished:
            return  # a late outcome: the targets are decided, some by winners of others
        if state is not None and proposal.purpose == "verification":
            self._verification.judge(state, genome, run)
        elif state is not None and not self._shortlists.holds(state, genome):
            state.count_replacement()
        self._check_abort(outcome)
        self._current = False

    def _follow(self, proposal: Proposal) -> None:
        """Enter the phase in which a proposal was made, where a stored run is told again."""
        if proposal.purpose != "initial-design":
            self._end_initial_design(told=True)
        if proposal.purpose == "verification" and proposal.key not in self._outstanding and not self._finished:
            self._verification.reconsider(self._targets)  # as it was before this proposal's round
        if proposal.has_target:
            self._end_exploration()
            if self.target_of(proposal) is None:
                self._follow_regime()
            if self.target_of(proposal) is None and not self._finished:
                self._verify(proposal.target_ms)
        elif proposal.purpose == "candidate" and not self._exploring:
            self._follow_regime()

    def _check_abort(self, outcome: Measurement | Failed) -> None:
        unmeasured = isinstance(outcome, Failed) and not len(self._latency.observations.table(unsure=True))
        if unmeasured and self.failures >= MAX_INITIAL_FAILURES:
            self.failure_reason = first_ones_failed(self.failures, self._verification.last_failure)
            self._finish()

    def _rng(self, stream: int = 3) -> np.random.Generator:
        return np.random.default_rng([self._seed, stream, self._told])

    # -- rounds ------------------------------------------------------------------------------------------------

    def _next_round(self) -> list[Proposal]:
        left = self.budget - self.measurements
        design = self._design.remaining() if left > 0 else []
        if design:
            return self._proposer.propose(design[:left], "initial-design")
        self._end_initial_design()
        if self._exploring:
            self._refresh_targets()
        else:
            self._follow_regime()
        while self._exploring and not self._finished:
            found = self._candidates.find(self._open_targets(), self.budget - self.measurements)
            if found:
                return found
            self._end_exploration()
            self._follow_regime()
        if self._finished or self._shortlists.wanted():
            return []
        round_ = self._verify()
        if not round_ and not self._shortlists.used:  # what may be better than the winners, while there is budget
            met = [state for state in self._targets if state.status is TargetStatus.MET]
            round_ = self._candidates.find(met, self.budget - self.measurements)
        if not round_ and not self._shortlists.wanted():
            self._finish()
        return round_

    def _end_initial_design(self, *, told: bool = False) -> None:
        """Once the initial design is measured, or a stored run has `told` so, automatic targets follow from it."""
        unfinished = not told and self.measurements < self.budget and not self._design.is_complete()
        if self._design_told is not None or self._finished or unfinished:
            return
        self._design_told = self._told
        if not len(self._latency.observations.table(unsure=True)):
            self.failure_reason = all_failed(self._verification.last_failure)
            self._finish()
        elif self._request.automatic:
            self._automatic.begin()
            self._refresh_targets()
        self._verification.decide_untold(self._targets)

    def _end_exploration(self) -> None:
        """From the first re-measurement on, targets change with the device's lasting speed only."""
        if self._exploring and not self._finished:
            self._refresh_targets()
            self._shortlists.make(self._open_targets())
            self._exploring = False
            self._regime_unix_s = self._latency.observations.speed_since_unix_s

    def _follow_regime(self) -> None:
        """Explore again once the device's lasting speed has changed: its targets' best subnets are others now.

        Automatic targets are about the present speed as well.
        """
        regime_unix_s = self._latency.observations.speed_since_unix_s
        if self._finished or regime_unix_s in (0.0, self._regime_unix_s):
            return
        self._regime_unix_s = regime_unix_s
        self._refresh_targets()
        if not self._finished and self._latency.observations.changed_for_good:
            self._exploring = True
            self._verification.reconsider(self._targets)

    def _refresh_targets(self) -> None:
        """Take over automatic targets that differ from the present ones."""
        self._targets = self._automatic.now(self._targets)
        if self._request.automatic and not self._targets:
            self.failure_reason = self._automatic.unknown
            self._finish()

    def _verify(self, told_ms: float | None = None) -> list[Proposal]:
        """Return the next re-measurements; targets out of reach are replaced once all are decided, or as was told."""
        found = self._verification.round(self._targets)
        if found and told_ms is None:
            return found
        raised = self._automatic.within_reach(self._targets, told_ms)
        if raised is not self._targets:
            self._targets = raised
            self._shortlists.make(self._open_targets())
        return [] if self._shortlists.wanted() else self._verification.round(self._targets)

    def _open_targets(self) -> list[TargetState]:
        return [state for state in self._targets if state.status is TargetStatus.OPEN]

    def _finish(self) -> None:
        self._finished = True
        self._queue.clear()
        self._outstanding.clear()
        for state in self._open_targets():
            state.miss(state.reason or self.failure_reason or "it was not verified")
        self._verification.complete(self._targets)

    def validate(self) -> None:
        """Check targets and proposals; `BrokenInvariantError` names the first contradiction. For tests."""
        check_targets(self._targets, finished=self._finished, failure_reason=self.failure_reason)
        check_proposals(self._queue, self._outstanding, finished=self._finished)
