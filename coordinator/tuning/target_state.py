"""State of one latency target on one device setting, and its changes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fleetnas.coordinator.records.target_kinds import Target, TargetKind
from fleetnas.coordinator.records.target_status import TargetStatus, transition
from fleetnas.coordinator.records.targets import TargetRequest, target_label
from fleetnas.coordinator.records.transitions import require
from fleetnas.coordinator.tuning.proposal import Genome
from fleetnas.fleet_protocol.architecture import Architecture


@dataclass(frozen=True)
class ShownValue:
    """What the re-measurement showed of a target of another kind than latency, in its unit."""

    value: float | None = None
    low: float | None = None
    high: float | None = None
    """Of a percentile's interval."""
    typical: float | None = None
    """What decides, at the typical speed of the run."""


@dataclass(frozen=True)
class ChosenSubnet:
    """The subnet that a target stands at. Latencies are milliseconds."""

    genome: Genome
    architecture: Architecture
    accuracy: float | None
    """As predicted, a fraction; None where no predictor is known."""
    measured_ms: float | None
    """As it ran before its file was calibrated; None where it was not measured."""


@dataclass
class TargetState:
    """One target and its best subnet so far, or a subnet that the user gave. Latencies are milliseconds."""

    target_ms: float
    """Infinite where a given subnet is compared with no target, and where the target is no latency."""
    status: TargetStatus = TargetStatus.OPEN
    genome: Genome | None = None
    architecture: Architecture | None = None
    predicted_ms: float | None = None
    """By the predictor, with this subnet's own measurements left out."""
    measured_ms: float | None = None
    verified_ms: float | None = None
    """The re-measurement as it ran."""
    typical_ms: float | None = None
    """The same at the typical speed of the run; None where its ratio to the reference said nothing."""
    accuracy: float | None = None
    """As predicted, a fraction."""
    sha256: str | None = None
    reason: str = ""
    note: str = ""
    """A remark on a target that was met."""
    missed_by: list[float] = field(default_factory=list)
    """How far re-measurements that missed were beyond the expected latency, relative."""
    verifications: int = 0
    disturbed: int = 0
    slowed_down: int = 0
    """Verifications that count as misses because the device was slowed down."""
    replacements: int = 0
    challenges: int = 0
    """Verifications of subnets that are better than the winner."""
    may_be_challenged: bool = True
    """False once there were enough of them, or a disturbance has spoiled one."""
    failures: int = 0
    given_up: bool = False
    """No measured subnet was within it; later measurements may change that."""
    subnet: str = ""
    """Fingerprint of the subnet that the user gave; empty where a subnet is searched."""
    target: Target | None = None
    """A target of another kind than the median latency."""
    shown: ShownValue = ShownValue()
    """What its re-measurement showed."""

    @classmethod
    def of(cls, target: Target) -> TargetState:
        """Return the state of a target of another kind than the median latency."""
        return cls(math.inf if target.target_ms is None else target.target_ms, target=target)

    @property
    def text(self) -> str:
        """Text of a target of another kind than latency; else empty."""
        return "" if self.target is None else self.target.text

    @property
    def key(self) -> tuple[float, str]:
        """Identity among the targets of one device setting."""
        return self.target_ms, self.text

    @property
    def label(self) -> str:
        """The target with its unit, for people."""
        return target_label(self.target_ms, self.text)

    @property
    def asked_ms(self) -> float | None:
        """The target as the user asked for it; None where there is none."""
        return self.target_ms if math.isfinite(self.target_ms) else None

    @property
    def met(self) -> bool | None:
        """True once a re-measurement met it, False once it is decided otherwise, None before."""
        return None if self.status is TargetStatus.OPEN else self.status is TargetStatus.MET

    # -- transitions -------------------------------------------------------------------------------------------

    def meet(self, sha256: str | None) -> None:
        """Note that a re-measurement of the file with this hash was within the target."""
        self._enter(TargetStatus.MET, "")
        self.sha256 = sha256

    def miss(self, reason: str) -> None:
        """Note that no further subnet is tried."""
        self._enter(TargetStatus.MISSED, reason)

    def give_up(self, reason: str, *, infeasible: bool = False) -> None:
        """Note that no measured subnet is within the target; `infeasible`: not even the smallest subnet."""
        self._enter(TargetStatus.INFEASIBLE if infeasible else TargetStatus.MISSED, reason)
        self.given_up = True

    def reopen(self) -> None:
        """Open a target again that was given up, because a subnet is within it by now."""
        self._enter(TargetStatus.OPEN, "")

    def withdraw(self, reason: str, typical_ms: float | None) -> None:
        """Open a target again that was met, because its winner turned out to be beyond it."""
        self._enter(TargetStatus.OPEN, reason)
        self.sha256, self.typical_ms = None, typical_ms

    def adopt(self, winner: TargetState) -> None:
        """Take over the winner of another target, which was measured within this one as well."""
        self._enter(TargetStatus.MET, "")
        self.note = f"the winner of {winner.label}, no better one was verified"
        self.genome, self.architecture = winner.genome, winner.architecture
        self.predicted_ms, self.measured_ms = winner.predicted_ms, winner.measured_ms
        self.verified_ms, self.typical_ms = winner.verified_ms, winner.typical_ms
        self.accuracy, self.sha256, self.shown = winner.accuracy, winner.sha256, winner.shown

    def _enter(self, status: TargetStatus, reason: str) -> None:
        self.status = transition(self.status, status)
        self.reason = reason
        self.given_up = False

    # -- the present subnet and counts -------------------------------------------------------------------------

    def choose(
        self,
        subnet: ChosenSubnet,
        verified_ms: float | None = None,
        typical_ms: float | None = None,
        shown: ShownValue = ShownValue(),
    ) -> None:
        """Set the present subnet, with what its re-measurement showed where it has one."""
        self.shown = shown
        self.genome, self.architecture = subnet.genome, subnet.architecture
        self.accuracy, self.measured_ms = subnet.accuracy, subnet.measured_ms
        self.verified_ms, self.typical_ms = verified_ms, typical_ms

    def predict(self, predicted_ms: float | None) -> None:
        """Set the predicted latency of the present subnet."""
        self.predicted_ms = predicted_ms

    def remark(self, note: str) -> None:
        """Set the remark on a target that was met."""
        self.note = note

    def count_failure(self) -> None:
        """Count a re-measurement that failed."""
        self.failures += 1

    def count_disturbed(self) -> int:
        """Count a re-measurement that a disturbance may have spoiled; returns their number."""
        self.disturbed += 1
        return self.disturbed

    def count_verification(self) -> None:
        """Count a re-measurement that decides."""
        self.verifications += 1

    def count_miss(self, missed_by: float, reason: str, *, slowed_down: bool) -> None:
        """Count a re-measurement beyond the target by `missed_by`, relative to the expected latency."""
        self.slowed_down += slowed_down
        self.reason = reason
        self.missed_by.append(missed_by)

    def count_challenge(self) -> int:
        """Count a re-measurement of a subnet that is better than the winner; return their number."""
        self.challenges += 1
        return self.challenges

    def end_challenges(self) -> None:
        """Let the winner stand."""
        self.may_be_challenged = False

    def count_replacement(self) -> None:
        """Count a subnet that was measured in place of one that missed the target."""
        self.replacements += 1

    def _shows_it(self, target: Target) -> bool:
        decides = self.shown.high if target.kind is TargetKind.PERCENTILE else self.shown.value
        return decides is not None and target.is_within(decides)

    def validate(self) -> None:
        """Check the state against its status; `BrokenInvariantError` names the target and the contradiction."""
        target_ms, status = self.target_ms, self.status
        require((self.genome is None) == (self.architecture is None), "target {:g} ms has half a subnet", target_ms)
        if status is TargetStatus.MET:
            shipped = self.architecture is not None and self.sha256 is not None
            require(shipped, "target {:g} ms is met without a winner's file", target_ms)
            within = self.verified_ms is not None and (self.target is not None or self.verified_ms <= target_ms)
            within = within and (self.target is None or self._shows_it(self.target))
            require(within, "target {:g} ms is met and was verified at {}", target_ms, self.verified_ms)
            require(not self.reason, "target {:g} ms is met and has a reason for a miss: {}", target_ms, self.reason)
        else:
            require(self.sha256 is None, "target {:g} ms is {} and has a winner's file", target_ms, status)
        if status in (TargetStatus.MISSED, TargetStatus.INFEASIBLE):
            require(bool(self.reason), "target {:g} ms is {} without a reason", target_ms, status)
        require(not self.given_up or self.met is False, "target {:g} ms is {} and given up", target_ms, status)
        untried = status is not TargetStatus.INFEASIBLE or self.verifications == 0
        require(untried, "target {:g} ms is infeasible after re-measurements", target_ms)


def states_of(request: TargetRequest) -> list[TargetState]:
    """Return the states of the targets that are known from a request alone."""
    return [*map(TargetState, request.fixed_ms), *map(TargetState.of, request.others)]


def rule_out(states: Sequence[TargetState], unsupported: Mapping[str, str]) -> None:
    """Miss the targets, by their texts, that cannot be measured on a device setting, with the reasons."""
    for state in states:
        if state.text in unsupported:
            state.miss(unsupported[state.text])


def with_latencies(states: Sequence[TargetState], targets_ms: Sequence[float]) -> list[TargetState]:
    """Return the states with these latencies in place of others; other kinds of targets stay.

    Where they differ, targets that are there already stay too, unless they were missed.
    """
    if list(targets_ms) == [state.target_ms for state in states if state.target is None]:
        return list(states)
    kept = {state.target_ms: state for state in states if state.target is None and state.met is not False}
    latencies = [kept.get(target_ms) or TargetState(target_ms) for target_ms in targets_ms]
    return [*latencies, *(state for state in states if state.target is not None)]


def is_floor(state: TargetState) -> bool:
    """Whether a target is an accuracy to keep."""
    return state.target is not None and state.target.kind is TargetKind.ACCURACY
