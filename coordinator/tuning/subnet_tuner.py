"""Measure given subnets on one device setting, as the files that ship: pure ask and tell, without a search.

Every subnet is measured several times as it runs, all of them in turn. Its middle measurement decides, by the rule of a
winner's verification; where the device was disturbed in that moment, further ones that wait for a fast device do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fleetnas.coordinator.predictors.metrics import HeldOutError
from fleetnas.coordinator.records.target_status import TargetStatus
from fleetnas.coordinator.records.transitions import require
from fleetnas.coordinator.search.problem import AccuracyModel
from fleetnas.coordinator.tuning.judgement import DISTURBED_TRIES, Judgement, judge_run
from fleetnas.coordinator.tuning.miss_reasons import remeasured_beyond
from fleetnas.coordinator.tuning.needed_precision import VERIFICATION
from fleetnas.coordinator.tuning.observations import Observations
from fleetnas.coordinator.tuning.proposal import Genome, Proposal
from fleetnas.coordinator.tuning.proposer import patience
from fleetnas.coordinator.tuning.setting_tuner import LoneSetting, TunerPhase
from fleetnas.coordinator.tuning.subnet_observations import QUARANTINE_FAILURES, Run
from fleetnas.coordinator.tuning.target_state import ChosenSubnet, TargetState
from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.fleet_protocol.messages import Failed, Measurement
from fleetnas.supernet_export.spaces.base import DesignSpace

#: Measurements of every subnet: as many as the typical speed of a run is known from.
REPEATS = 3


class SubnetTuner(LoneSetting):
    """The measurement of given subnets on one device setting; a `SettingTuner`."""

    targets_note = ""

    def __init__(
        self,
        space: DesignSpace,
        architectures: Sequence[Architecture],
        *,
        target_ms: float | None = None,
        accuracy: AccuracyModel | None = None,
    ) -> None:
        """`target_ms` is compared with every subnet; `accuracy` predicts theirs, where there is such a predictor.

        `ArchitectureError` where one of the `architectures` is not in the space.
        """
        self.space = space
        self.failure_reason = ""
        self.measurements = 0
        self._observations = Observations()
        self._states: dict[tuple[int, ...], TargetState] = {}
        self._runs: dict[tuple[int, ...], list[Run]] = {}
        self._outstanding: dict[tuple[int, ...], Proposal] = {}
        self._queue: list[Proposal] = []
        self._finished = False
        self._abandoned = False
        self._last_failure: dict[tuple[int, ...], str] = {}
        #: Subnets without a file to measure, with the reasons.
        self._rejected: dict[tuple[int, ...], str] = {}
        genomes = space.encode(architectures)
        predicted = accuracy.predict(genomes).tolist() if accuracy is not None else [None] * len(genomes)
        for genome, top1, architecture in zip(genomes, predicted, space.decode(genomes), strict=True):
            key = tuple(genome.tolist())
            state = TargetState(math.inf if target_ms is None else target_ms, subnet=architecture.fingerprint)
            state.choose(ChosenSubnet(genome, architecture, top1, None))
            self._states[key], self._runs[key] = state, []

    # -- state -------------------------------------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        """Whether every subnet is decided."""
        return self._finished

    @property
    def phase(self) -> TunerPhase:
        """Present phase."""
        return "done" if self._finished else "verification"

    @property
    def needs_planning(self) -> bool:
        """Whether the next `ask` begins a round."""
        return not self._finished and not self._queue and not self._outstanding

    @property
    def targets(self) -> list[TargetState]:
        """Every subnet, in the order in which they were given."""
        return list(self._states.values())

    @property
    def decided(self) -> list[TargetState]:
        """Every subnet once all are decided: the typical speed is that of the whole run."""
        return self.targets if self._finished else []

    @property
    def quarantined(self) -> int:
        """Number of subnets that failed twice and are left alone."""
        return len(self._observations.quarantined())

    @property
    def fastest_ms(self) -> float | None:
        """The least latency that was measured, as it ran."""
        fastest = self._observations.fastest()
        return fastest.fastest_ms if fastest is not None else None

    def target_of(self, proposal: Proposal) -> TargetState | None:
        """Return the subnet of a proposal."""
        return self._states.get(proposal.genome)

    def predict_targets(self) -> None:
        """Do nothing: nothing is predicted."""

    def held_out_error(self) -> HeldOutError:
        """Return that there is no predictor."""
        return HeldOutError(None, None, 0)

    # -- ask and tell ------------------------------------------------------------------------------------------

    def ask(self, count: int) -> list[Proposal]:
        """Return up to `count` subnets to measure next; none while a round's last ones are being measured."""
        if self.needs_planning:
            self._queue = self._next_round()
        asked, self._queue = self._queue[:count], self._queue[count:]
        self._outstanding.update((proposal.genome, proposal) for proposal in asked)
        return asked

    def expect(self, proposal: Proposal) -> None:
        """Take in a proposal of an earlier coordinator that has no outcome yet."""
        if not self._finished and proposal.genome in self._states:
            self._outstanding[proposal.genome] = proposal

    def tell(self, proposal: Proposal, outcome: Measurement | Failed) -> None:
        """Take the outcome of a proposal, also of one that a stored run asked for."""
        key = proposal.genome
        if self._abandoned or key not in self._states:
            return
        self._outstanding.pop(key, None)
        self._queue = [waiting for waiting in self._queue if waiting.genome != key]
        self.measurements += 1
        state, genome = self._states[key], _genome(key)
        if isinstance(outcome, Failed):
            state.count_failure()
            self._last_failure[key] = f"{outcome.reason} ({outcome.detail})" if outcome.detail else outcome.reason
            self._observations.add_failure(genome)
        else:
            # Those beyond the first ones wait for a fast device, and say nothing about the typical speed.
            extra = len(self._runs[key]) >= REPEATS
            self._runs[key].append(self._observations.add(genome, outcome, awaited=extra))
            if state.status is TargetStatus.OPEN:
                self._show(key, self._deciding(key))
        if self.needs_planning and not self._next_round():
            self._finish()

    def reject(self, proposal: Proposal, reason: str) -> None:
        """End one subnet, as no file to measure can be made of it; the others go on."""
        if self._abandoned or self._finished:
            return
        self._outstanding.pop(proposal.genome, None)
        self._rejected[proposal.genome] = reason
        if self.needs_planning and not self._next_round():
            self._finish()

    def wanted_accuracies(self) -> list[Architecture]:
        """Return none: nothing is chosen."""
        return []

    def tell_accuracy(self, architecture: Architecture, accuracy: float | None) -> None:
        """Do nothing: no accuracy is wanted."""

    def abandon(self, reason: str) -> None:
        """End at once: it raised an exception, which `reason` describes."""
        self._abandoned = self._finished = True
        self.failure_reason = reason
        self._queue.clear()
        self._outstanding.clear()
        for state in self._states.values():
            if state.status is TargetStatus.OPEN:
                state.miss(reason)

    # -- rounds ------------------------------------------------------------------------------------------------

    def _next_round(self) -> list[Proposal]:
        """Return a measurement of every subnet that lacks one; then of those that are to be tried again."""
        working = [
            key
            for key, state in self._states.items()
            if state.failures < QUARANTINE_FAILURES and key not in self._rejected
        ]
        round_ = [self._proposal(key) for key in working if len(self._runs[key]) < REPEATS]
        if not round_:
            again = [key for key in working if self._is_disturbed(key)]
            round_ = [self._proposal(key, waits=True) for key in again]
        return round_

    def _is_disturbed(self, key: tuple[int, ...]) -> bool:
        """Whether the deciding measurement was disturbed, and another one may still be tried."""
        run = self._deciding(key)
        judgement = judge_run(self._states[key].target_ms, run, self._observations.typical_ms(run))
        return judgement is Judgement.DISTURBED and len(self._runs[key]) < REPEATS + DISTURBED_TRIES

    def _deciding(self, key: tuple[int, ...]) -> Run:
        """Return the middle one of the first measurements, or the last of further ones."""
        runs = self._runs[key]
        if len(runs) > REPEATS:
            return runs[-1]
        return sorted(runs, key=lambda run: run.median_ms)[len(runs) // 2]

    def _proposal(self, key: tuple[int, ...], *, waits: bool = False) -> Proposal:
        state = self._states[key]
        assert state.architecture is not None
        return Proposal(
            key,
            state.architecture,
            "verification",
            predicted_accuracy=state.accuracy,
            wait_above=self._patience(key) if waits else None,
            precision=VERIFICATION,
        )

    def _patience(self, key: tuple[int, ...]) -> float:
        run = self._deciding(key)
        return patience(self._observations.speed, self._observations.undisturbed_ms(run) or run.median_ms)

    def _show(self, key: tuple[int, ...], run: Run) -> None:
        """Set a subnet's latencies."""
        state = self._states[key]
        assert state.architecture is not None
        subnet = ChosenSubnet(_genome(key), state.architecture, state.accuracy, None)
        state.choose(subnet, run.median_ms, self._observations.typical_ms(run))

    def _finish(self) -> None:
        """Decide every subnet, at the typical speed of all measurements."""
        self._finished = True
        for key, state in self._states.items():
            if key in self._rejected:
                state.miss(self._rejected[key])
                continue
            if len(self._runs[key]) < REPEATS:
                state.miss(f"{state.failures} measurements failed, the last with {self._last_failure[key]}")
                continue
            run = self._deciding(key)
            typical_ms = self._observations.typical_ms(run)
            judgement = judge_run(state.target_ms, run, typical_ms)
            state.count_verification()
            self._show(key, run)
            if judgement is Judgement.WITHIN:
                state.meet(run.model_sha256)
            else:
                disturbed = judgement is Judgement.DISTURBED
                state.miss(remeasured_beyond(state, run, typical_ms, disturbed=disturbed))

    def validate(self) -> None:
        """Check subnets and proposals; `BrokenInvariantError` names the first contradiction. For tests."""
        for state in self._states.values():
            state.validate()
        queued = [proposal.genome for proposal in self._queue]
        require(not self._outstanding.keys() & set(queued), "a subnet is queued and being measured")
        if self._finished:
            require(not queued and not self._outstanding, "finished, and asks for measurements")
            open_ = [state.subnet for state in self._states.values() if state.status is TargetStatus.OPEN]
            require(not open_, "finished with open subnets: {}", open_)


def _genome(key: tuple[int, ...]) -> Genome:
    return np.array(key, dtype=np.int16)
