"""Snapshots of the device settings of a running campaign."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from fleetnas.coordinator.campaign.setting_run import SettingRun
from fleetnas.coordinator.fleet.registry import AgentEntry, FleetRegistry
from fleetnas.coordinator.records.plan import CampaignPlan
from fleetnas.coordinator.records.snapshot import DeviceSnapshot, DeviceState, TargetSnapshot, ended_state
from fleetnas.coordinator.records.statuses import SettingStatus
from fleetnas.coordinator.records.stored import TaskRecord
from fleetnas.coordinator.records.target_status import TargetStatus
from fleetnas.coordinator.records.task_words import task_words
from fleetnas.coordinator.records.totals import targets_asked, unreached
from fleetnas.coordinator.records.verdict import shown_reason
from fleetnas.coordinator.tuning.target_state import TargetState, states_of


def phase_of(running: Iterable[SettingRun]) -> str:
    """Return the phase of a campaign with these device settings at work, for people."""
    phases = {setting_run.search.phase for setting_run in running}
    return "verifying" if phases <= {"verification", "done"} else "searching"


class LiveSnapshots:
    """Makes the snapshots of device settings. One that fails costs itself: the others are complete."""

    def __init__(
        self, plan: CampaignPlan, registry: FleetRegistry, failed: Callable[[SettingRun, Exception], object]
    ) -> None:
        """`failed` is called for every device setting whose snapshot raises."""
        self._plan, self._registry, self._failed = plan, registry, failed

    def of(self, setting_runs: Iterable[SettingRun]) -> tuple[DeviceSnapshot, ...]:
        """Return the snapshot of each device setting, without its search's values where these cannot be read.

        A search may be at work in another thread meanwhile, so an error here does not end it.
        """
        return tuple(self._contained(setting_run) for setting_run in setting_runs)

    def _contained(self, setting_run: SettingRun) -> DeviceSnapshot:
        try:
            return setting_snapshot(setting_run, self._registry.agents.get(setting_run.device), self._plan)
        except Exception as error:  # noqa: BLE001 - a search is read while it runs; its campaign must go on
            self._failed(setting_run, error)
        return _bare(setting_run, self._plan)


def setting_snapshot(setting_run: SettingRun, entry: AgentEntry | None, plan: CampaignPlan) -> DeviceSnapshot:
    """Return the snapshot of one device setting; `entry` is what the registry knows of its agent."""
    state, detail = _state(setting_run, entry)
    targets = setting_run.search.targets
    request = plan.request_for(setting_run.device, setting_run.info)
    # A request for given targets is known before the search takes it up.
    known = targets if setting_run.search.targets_known is not None else targets or states_of(request)
    return DeviceSnapshot(
        device=setting_run.device,
        setting_label=setting_run.setting.label,
        state=state,
        state_detail=detail,
        temperature_c=setting_run.temperature_c,
        throttled=setting_run.throttled,
        measurements=setting_run.search.measurements,
        budget=plan.budget,
        failures=setting_run.failures,
        quarantined=setting_run.search.quarantined,
        progress=_progress(setting_run, entry),
        predictor_error=setting_run.learning[-1].error if setting_run.learning else None,
        targets=tuple(_target(setting_run, target) for target in known),
        targets_asked=_targets_asked(setting_run, plan, targets),
        targets_note=setting_run.search.targets_note,
        tags=setting_run.info.tags,
        board=setting_run.search.board,
        quality=setting_run.tally.quality,
    )


def _targets_asked(setting_run: SettingRun, plan: CampaignPlan, targets: Sequence[TargetState]) -> int:
    request = plan.request_for(setting_run.device, setting_run.info)
    # Automatic targets are known from the end of the initial design on, the others from the beginning.
    waits = request.automatic > 0 and all(target.target is not None for target in targets)
    asked = plan.asked_of(setting_run.device, setting_run.info)
    return targets_asked(asked, None if waits else setting_run.search.targets_known)


def _bare(setting_run: SettingRun, plan: CampaignPlan) -> DeviceSnapshot:
    """Return what is known of a device setting without asking its search."""
    return DeviceSnapshot(
        device=setting_run.device,
        setting_label=setting_run.setting.label,
        state=ended_state(setting_run.status) or "idle",
        state_detail=setting_run.reason,
        budget=plan.budget,
        failures=setting_run.failures,
        targets_asked=plan.asked_of(setting_run.device, setting_run.info),
    )


def _state(setting_run: SettingRun, entry: AgentEntry | None) -> tuple[DeviceState, str]:
    ended = ended_state(setting_run.status)
    if ended is not None:
        return ended, setting_run.reason
    if entry is None or not entry.present:
        if entry is None or entry.usable:
            return "offline", "not seen since the run was resumed"
        return "offline", entry.idle_reason()
    record = _running(setting_run, entry)
    if record is not None:
        if entry.phase == "fetching":
            return "fetching", "the bundle"
        if entry.phase == "waiting":
            return "waiting", entry.resting or "for another agent of its host"
        if record.purpose == "verification":
            return "verifying", task_words(record)
        return "measuring", task_words(record)
    if setting_run.selection is not None:
        done, total = setting_run.selection
        return "waiting", f"for candidates on selection images, {done} of {total} evaluated"
    if setting_run.plan is not None:
        return "waiting", "for the search to choose its next subnets"
    if setting_run.evaluations:
        return "waiting", "for the winners' accuracy"
    if setting_run.ready:
        return "waiting", "for its device, which measures another setting"
    return "idle", "nothing to measure now"


def _running(setting_run: SettingRun, entry: AgentEntry) -> TaskRecord | None:
    """Return the leased task that the agent reports on; before any report, the first one."""
    if entry.phase_task is not None:
        task = setting_run.leased.get(entry.phase_task.task_id)
    else:
        task = next(iter(setting_run.leased.values()), None)
    return task.record if task is not None else None


def _progress(setting_run: SettingRun, entry: AgentEntry | None) -> float | None:
    """Return the finished share of the task that the agent reports on; None where it reports on none of these."""
    if entry is None or entry.phase is None or entry.phase_task is None:
        return None
    if entry.phase_task.task_id not in setting_run.leased:
        return None
    return entry.phase_fraction


def _target(setting_run: SettingRun, target: TargetState) -> TargetSnapshot:
    status = target.status
    evaluated, _ = setting_run.accuracy_of(target.architecture if status is TargetStatus.MET else None)
    met = status is TargetStatus.MET if status is not TargetStatus.OPEN else None
    reason = shown_reason(status, target.reason)
    if met is None and setting_run.status is not SettingStatus.RUNNING:
        met, reason = False, unreached(setting_run.status)
    elif met is None:
        reason = reason or setting_run.reason
    return TargetSnapshot(
        target_ms=target.asked_ms,
        predicted_ms=target.predicted_ms,
        measured_ms=target.measured_ms,
        verified_ms=target.verified_ms,
        accuracy=target.accuracy,
        evaluated_accuracy=evaluated,
        met=met,
        reason=reason,
        typical_ms=target.typical_ms,
        note=target.note,
        subnet=target.subnet,
        target=target.text,
        value=target.shown.value,
        value_low=target.shown.low,
        value_high=target.shown.high,
        typical_value=target.shown.typical,
    )
