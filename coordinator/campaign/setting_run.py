"""One device setting inside a campaign: its search, its tasks and what they cost."""

from __future__ import annotations

import logging
import math
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

from fleetnas.coordinator.campaign.winner_builder import CalibratedModel
from fleetnas.coordinator.records.budget import counts_against_budget
from fleetnas.coordinator.records.data_quality import Finding, QualityTally
from fleetnas.coordinator.records.predictor_error import PredictorError, PredictorPoint
from fleetnas.coordinator.records.statuses import SettingStatus
from fleetnas.coordinator.records.stored import DeviceRecord, Outcome, TaskRecord
from fleetnas.coordinator.tuning.device_tuner import DeviceTuner
from fleetnas.coordinator.tuning.proposal import Proposal
from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.fleet_protocol.error_text import one_line
from fleetnas.fleet_protocol.errors import MissingDependencyError, RuntimeUnavailableError
from fleetnas.fleet_protocol.messages import AgentInfo, BlobReference, Failed, RuntimeSetting, TaskKey

_log = logging.getLogger("fleetnas.coordinator")


@dataclass
class SettingTask:
    """One task on its way. Times are the campaign's clock."""

    record: TaskRecord
    proposal: Proposal
    calibration: BlobReference | None = None
    lease_ends_s: float | None = None
    #: Until when the lease may be renewed.
    held_until_s: float = float("inf")
    expired_leases: int = 0

    @property
    def key(self) -> TaskKey:
        """The attempt that is out now."""
        return TaskKey(task_id=self.record.task_id, attempt=self.record.attempt)

    def next_attempt(self) -> TaskRecord:
        """The record of the attempt after this one."""
        return replace(self.record, attempt=self.record.attempt + 1)


@dataclass
class PlannedTask:
    """A proposal with the file that a verification is about."""

    proposal: Proposal
    model: CalibratedModel | None = None


@dataclass
class SettingRun:
    """One device setting."""

    run_id: str
    device: str
    setting: RuntimeSetting
    info: AgentInfo
    search: DeviceTuner
    status: SettingStatus = SettingStatus.RUNNING
    reason: str = ""
    ready: deque[SettingTask] = field(default_factory=deque)
    leased: dict[str, SettingTask] = field(default_factory=dict)
    #: What came while a plan was being made; the search is told afterwards.
    inbox: list[tuple[Proposal, Outcome]] = field(default_factory=list)
    plan: Future[list[PlannedTask]] | None = None
    evaluations: dict[str, Future[tuple[float, int] | None]] = field(default_factory=dict)
    models: dict[str, CalibratedModel] = field(default_factory=dict)
    #: (target, subnet) for which the search's choice was announced.
    announced: set[tuple[float, str]] = field(default_factory=set)
    settled: set[float] = field(default_factory=set)
    accuracies: dict[str, tuple[float, int]] = field(default_factory=dict)
    learning: list[PredictorPoint] = field(default_factory=list)
    #: The resolved targets, ms; empty before the store was told of them.
    targets_ms: tuple[float, ...] = ()
    failures: int = 0
    #: Tasks that came back undone since the last outcome.
    returned: int = 0
    tally: QualityTally = field(default_factory=QualityTally)
    wire_bytes: int = 0
    temperature_c: float | None = None
    throttled: bool | None = None

    @property
    def label(self) -> str:
        """Device and setting, for people."""
        return f"{self.device}/{self.setting.label}"

    @property
    def busy(self) -> bool:
        """Something is planned, handed out, evaluated or still to be told."""
        return bool(self.ready or self.leased or self.inbox or self.plan is not None or self.evaluations)

    @property
    def measurements(self) -> int:
        """Counted against the budget, what the search is yet to be told included."""
        waiting = sum(counts_against_budget(proposal.purpose, proposal.target_ms) for proposal, _ in self.inbox)
        return self.search.measurements + waiting

    def count_outcome(self, outcome: Outcome) -> tuple[Finding, ...]:
        """Count the outcome of a task; returns the findings to announce."""
        if isinstance(outcome, Failed):
            self.failures += 1
            return ()
        return self.tally.add(outcome)

    @property
    def learned_much(self) -> bool:
        """Twice as much was measured as when the predictor's error was noted last, and a round is over."""
        noted = self.learning[-1].measurements if self.learning else 1
        return self.search.needs_planning and self.search.measurements >= 2 * noted

    def note_learning(self) -> bool:
        """Write down the predictor's held-out error; False where it has learned nothing new."""
        error = self.search.held_out_error()
        if (
            error.mape_percent is None
            or not math.isfinite(error.mape_percent)
            or (self.learning and self.learning[-1].measurements == error.held_out)
        ):
            return False
        rank = error.spearman if error.spearman is not None and math.isfinite(error.spearman) else None
        self.learning.append(PredictorPoint(error.held_out, PredictorError(error.mape_percent, rank, error.held_out)))
        return True

    def accuracy_of(self, architecture: Architecture | None) -> tuple[float | None, int | None]:
        """Accuracy of a winner's file on held-out images, and how many they are; None where it was not evaluated."""
        return self.accuracies.get(architecture.fingerprint, (None, None)) if architecture is not None else (None, None)

    def collect_evaluations(self) -> list[str]:
        """Take what was evaluated; returns why a target's file could not be run here, one line each."""
        reasons = []
        for subnet, future in list(self.evaluations.items()):
            if future.done():
                del self.evaluations[subnet]
                try:
                    found = future.result()
                except Exception as error:
                    # The latency stands without it.
                    if not isinstance(error, RuntimeUnavailableError | MissingDependencyError):
                        _log.error("the accuracy of winner %s of %s is unknown", subnet, self.label, exc_info=error)
                    reasons.append(f"no accuracy for winner {subnet}: {one_line(error)}")
                    continue
                if found is not None:
                    self.accuracies[subnet] = found
        return reasons

    def to_record(self) -> DeviceRecord:
        """What the store keeps."""
        # Resolved targets do not change, and reading them makes the search look for the best subnet of each.
        if not self.targets_ms or self.status is not SettingStatus.RUNNING:
            self.targets_ms = tuple(state.target_ms for state in self.search.targets)
        return DeviceRecord(
            self.run_id,
            self.device,
            self.setting,
            self.info,
            self.status,
            self.reason,
            tuple(self.learning),
            self.wire_bytes,
            self.targets_ms or None,
            self.search.targets_note,
        )
