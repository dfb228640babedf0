"""One device setting of a stored run, as events and as a snapshot."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fleetnas.coordinator.records import events
from fleetnas.coordinator.records.baselines import BaselineRecord
from fleetnas.coordinator.records.board_place import BoardPlace
from fleetnas.coordinator.records.budget import counts_against_budget
from fleetnas.coordinator.records.data_quality import QualityTally
from fleetnas.coordinator.records.plan import CampaignPlan
from fleetnas.coordinator.records.setting_events import SettingEvents
from fleetnas.coordinator.records.snapshot import (
    DeviceSnapshot,
    DeviceState,
    TargetSnapshot,
    baseline_snapshots,
    ended_state,
)
from fleetnas.coordinator.records.statuses import SettingStatus
from fleetnas.coordinator.records.stored import DeviceRecord, OutcomeRecord, TaskRecord, WinnerRecord
from fleetnas.coordinator.records.targets import TargetKey, ordered
from fleetnas.coordinator.records.task_words import task_words
from fleetnas.coordinator.records.totals import unreached
from fleetnas.coordinator.records.verdict import shown_reason
from fleetnas.coordinator.report.stored_outcome import known_targets, stored_targets_asked
from fleetnas.fleet_protocol.messages import Failed, Measurement, RuntimeSetting


@dataclass(frozen=True)
class StoredWork:
    """What the search of a stored device setting has done."""

    measured_together: int
    """First measurements of its whole class of equal boards."""
    phase: str
    board: BoardPlace | None


class StoredSetting:
    """Takes the stored outcomes, errors and winners of one device setting, in the order in which they were stored."""

    def __init__(self, run_id: str, plan: CampaignPlan, begun_unix_s: float, record: DeviceRecord) -> None:
        """`begun_unix_s` is the time at which the run was created, in Unix seconds."""
        self._run_id, self._plan, self._begun_unix_s = run_id, plan, begun_unix_s
        self._record = record
        self._events = SettingEvents(run_id, record.device, record.setting.label)
        self.measurements = self.failures = self._learned = 0
        self._last: OutcomeRecord | None = None
        self.tally = QualityTally()
        self._targets: dict[TargetKey, TargetSnapshot] = {}
        self._lost = False
        self._settled: set[TargetKey] = set()
        #: Tasks of which an outcome was read: of several attempts the first counts.
        self._known: set[str] = set()
        self._baselines: dict[str, BaselineRecord] = {}
        self.search = StoredWork(0, "search", record.board)
        #: First median of each subnet, ms, by its fingerprint.
        self._measured_ms: dict[str, float] = {}

    @property
    def record(self) -> DeviceRecord:
        """The device setting as it was stored when the store was read."""
        return self._record

    @property
    def device(self) -> str:
        """Name of the agent."""
        return self._record.device

    @property
    def setting(self) -> RuntimeSetting:
        """Its runtime setting."""
        return self._record.setting

    @property
    def running(self) -> bool:
        """Whether it was neither finished, lost nor failed when the store was read."""
        return self._record.status is SettingStatus.RUNNING

    @property
    def verifying(self) -> bool:
        """Whether its latest outcome is that of a verification."""
        return self._last is not None and self._last.task.purpose == "verification"

    @property
    def latest_s(self) -> float:
        """Time at which its latest outcome was stored, in Unix seconds."""
        return self._last.stored_unix_s if self._last is not None else self._begun_unix_s

    def take_record(self, record: DeviceRecord) -> list[events.Event]:
        """Take the stored device setting as it is now; returns the event of a device that was lost since."""
        self._record = record
        if record.status is not SettingStatus.LOST or self._lost:
            return []
        self._lost = True
        return [events.DeviceLost(at_s=self.latest_s, run_id=self._run_id, device=record.device, reason=record.reason)]

    def take_outcome(self, found: OutcomeRecord) -> list[events.Event]:
        """Take the outcome of one attempt; returns no event for a second outcome of a task."""
        task, outcome = found.task, found.outcome
        if task.task_id in self._known:
            return []
        self._known.add(task.task_id)
        self._last = found
        self.measurements += counts_against_budget(task.purpose, task.target_ms, task.target)
        at_s = found.stored_unix_s
        if isinstance(outcome, Failed):
            self.failures += 1
            return [self._events.failed(at_s, task, outcome, self.failures)]
        if task.purpose == "verification":
            key = self._key_of(task)
            self._targets[key] = TargetSnapshot(
                target_ms=key.target_ms,
                subnet=key.subnet,
                target=key.target,
                measured_ms=self._measured_ms.get(task.architecture.fingerprint),
                verified_ms=outcome.median_ms,
                accuracy=task.predicted_accuracy,
            )
        self._measured_ms.setdefault(task.architecture.fingerprint, outcome.median_ms)
        taken = self._events.measured(at_s, task, outcome, self.measurements, self._plan.budget)
        findings = self.tally.add(outcome)
        if not findings:
            return [taken]
        return [taken, *self._events.findings(at_s, findings, outcome, self.tally.quality)]

    def _key_of(self, task: TaskRecord) -> TargetKey:
        """Return the target of a verification; of a given subnet, that is the plan's."""
        if task.target_ms is not None or task.target:
            return TargetKey(task.target_ms, target=task.target)
        return TargetKey(self._plan.target_ms, task.architecture.fingerprint)

    def take_learning(self) -> list[events.Event]:
        """Return the events of the predictor's errors that were stored since the last call."""
        points = self._record.learning[self._learned :]
        self._learned += len(points)
        return [self._events.learned(self.latest_s, point) for point in points]

    def take_winner(self, winner: WinnerRecord) -> list[events.Event]:
        """Take a decided target as it is now; returns no event for one that was taken before.

        Raises:
            ValueError: the winner of a target that is met lacks its architecture, latency or hash.
        """
        key = TargetKey(winner.target_ms, winner.subnet, winner.target)
        self._targets[key] = TargetSnapshot(
            target_ms=winner.target_ms,
            subnet=winner.subnet,
            predicted_ms=winner.predicted_ms,
            measured_ms=winner.measured_ms,
            verified_ms=winner.verified_ms,
            accuracy=winner.predicted_accuracy,
            evaluated_accuracy=winner.accuracy,
            met=winner.met,
            reason=shown_reason(winner.status, winner.reason),
            typical_ms=winner.typical_ms,
            note=winner.note,
            target=winner.target,
            value=winner.value,
            value_low=winner.value_low,
            value_high=winner.value_high,
            typical_value=winner.typical_value,
        )
        if key in self._settled:
            return []
        self._settled.add(key)
        return [self._events.decided(self.latest_s, winner)]

    def take_together(self, measured: int) -> None:
        """Take the number of first measurements of its whole class of equal boards, its own included."""
        phase = "verification" if self.verifying else "search"
        self.search = StoredWork(measured, phase, self._record.board)

    def take_baseline(self, baseline: BaselineRecord) -> list[events.Event]:
        """Take a baseline as it is stored now; returns the event of one with nothing left to measure, once."""
        before = self._baselines.get(baseline.baseline)
        self._baselines[baseline.baseline] = baseline
        if not baseline.done or (before is not None and before.done):
            return []
        latest_s = max((each.finished_unix_s for each in baseline.measurements), default=self.latest_s)
        return [self._events.baseline(latest_s, baseline)]

    def snapshot(self, *, run_goes_on: bool) -> DeviceSnapshot:
        """Return the present state of the device setting."""
        record, last = self._record, self._last
        after = last.outcome.after if last is not None and isinstance(last.outcome, Measurement) else None
        return DeviceSnapshot(
            device=record.device,
            setting_label=record.setting.label,
            state=self._state(run_goes_on),
            state_detail=record.reason or self._latest_words(run_goes_on),
            temperature_c=after.temperature_c if after is not None else None,
            throttled=after.throttled if after is not None else None,
            measurements=self.measurements,
            budget=self._plan.budget,
            failures=self.failures,
            predictor_error=record.learning[-1].error if record.learning else None,
            targets=self._known_targets(),
            targets_asked=stored_targets_asked(record, self._plan.asked_of(record.device, record.info)),
            targets_note=record.targets_note,
            tags=record.info.tags,
            board=record.board,
            baselines=baseline_snapshots(self._baselines.values()),
            quality=self.tally.quality,
        )

    def _latest_words(self, run_goes_on: bool) -> str:
        """Return the latest stored subnet in words: which one is measured now, the store does not tell."""
        if not run_goes_on or not self.running:
            return ""
        return f"after {task_words(self._last.task)}" if self._last is not None else "for its first result"

    def _state(self, run_goes_on: bool) -> DeviceState:
        ended = ended_state(self._record.status)
        if ended is not None:
            return ended
        if not run_goes_on:
            return "idle"
        if self._last is None:
            return "waiting"
        return "verifying" if self.verifying else "measuring"

    def _known_targets(self) -> tuple[TargetSnapshot, ...]:
        known = {
            key: TargetSnapshot(key.target_ms, subnet=key.subnet, target=key.target)
            for key in known_targets(self._record, self._plan)
        }
        # Automatic targets are chosen anew where the device changes its speed: those before are no targets any more.
        verified = self._targets.items()
        resolved = self._record.targets_ms is not None
        current = {key: each for key, each in verified if not resolved or key in known}
        found = {**known, **current}
        targets = [found[key] for key in ordered(found)]
        if self.running:
            # Where its time was over, the record says so; while it is at work again, the record is renewed soon.
            stopped = self._record.reason
            return tuple(
                target if target.met is not None else replace(target, reason=stopped or target.reason)
                for target in targets
            )
        reason = unreached(self._record.status)
        return tuple(
            target if target.met is not None else replace(target, met=False, reason=reason) for target in targets
        )
