"""How a campaign stands: the live snapshot, the stored winners, and the outcome of any stored run."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from fleetnas.coordinator.campaign.setting_run import SettingRun, one_line
from fleetnas.coordinator.fleet.registry import AgentEntry
from fleetnas.coordinator.records.bounds import subnet_costs
from fleetnas.coordinator.records.outcome import (
    CampaignOutcome,
    DeviceOutcome,
    FailureRow,
    MeasurementRow,
    PredictorPoint,
    SupernetProvenance,
    TargetOutcome,
)
from fleetnas.coordinator.records.plan import CampaignPlan, settings_of
from fleetnas.coordinator.records.snapshot import (
    DeviceSnapshot,
    DeviceState,
    PredictorError,
    ProgressSnapshot,
    Snapshot,
    TargetSnapshot,
)
from fleetnas.coordinator.records.stored import DeviceRecord, OutcomeRecord, WinnerRecord
from fleetnas.coordinator.records.targets import TargetRequest
from fleetnas.coordinator.records.totals import TargetTotals, target_totals, targets_asked, unreached
from fleetnas.coordinator.store.store import MeasurementStore
from fleetnas.coordinator.tuning.target_state import TargetState
from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.fleet_protocol.messages import Failed
from fleetnas.supernet_export.spaces.base import DesignSpace

if TYPE_CHECKING:
    from fleetnas.coordinator.campaign.campaign import Campaign

_SHOWN_LOG_LINES = 20
_log = logging.getLogger("fleetnas.coordinator")


# -- live ------------------------------------------------------------------------------------------------------


def snapshot_of(campaign: Campaign, now_unix_s: float) -> Snapshot:
    """One immutable picture of a running campaign."""
    request = campaign.plan.request
    return Snapshot(
        run_id=campaign.identity.run_id,
        supernet=campaign.identity.supernet,
        started_s=campaign.started_unix_s,
        now_s=now_unix_s,
        phase=campaign.phase,
        devices=tuple(
            _contained_device(campaign, setting_run, request) for setting_run in campaign.setting_runs.values()
        ),
        log=tuple(list(campaign.log)[-_SHOWN_LOG_LINES:]),
    )


def _contained_device(campaign: Campaign, setting_run: SettingRun, request: TargetRequest) -> DeviceSnapshot:
    """Return the snapshot of a device setting; where its search cannot be shown, what is known without it.

    The search may be at work in another thread meanwhile.
    """
    entry = campaign.registry.agents.get(setting_run.device)
    try:
        return _device(setting_run, entry, campaign.plan.budget, request)
    except Exception as error:  # noqa: BLE001 - contained to its device setting, with the trace in the log
        campaign.note_unshown(setting_run, error)
        return bare_snapshot(setting_run, campaign.plan)


def _device(setting_run: SettingRun, entry: AgentEntry | None, budget: int, request: TargetRequest) -> DeviceSnapshot:
    state, detail = _state(setting_run, entry)
    error = setting_run.learning[-1] if setting_run.learning else None
    targets = setting_run.search.targets
    # A request for given targets is known before the search takes it up.
    known = targets or [TargetState(target_ms) for target_ms in request.fixed_ms]
    return DeviceSnapshot(
        device=setting_run.device,
        setting_label=setting_run.setting.label,
        state=state,
        state_detail=detail,
        temperature_c=setting_run.temperature_c,
        throttled=setting_run.throttled,
        measurements=setting_run.search.measurements,
        budget=budget,
        failures=setting_run.failures,
        quarantined=setting_run.search.quarantined,
        current_progress=_progress(setting_run, entry),
        predictor_error=_error(error) if error is not None else None,
        targets=tuple(_target(setting_run, target) for target in known),
        targets_asked=targets_asked(request.count, len(targets) or None),
        targets_note=setting_run.search.targets_note,
        quality=setting_run.tally.quality,
    )


def bare_snapshot(setting_run: SettingRun, plan: CampaignPlan) -> DeviceSnapshot:
    """What is known of a device setting without asking its search."""
    states: dict[str, DeviceState] = {"lost": "lost", "failed": "failed", "finished": "done"}
    return DeviceSnapshot(
        device=setting_run.device,
        setting_label=setting_run.setting.label,
        state=states.get(setting_run.status, "idle"),
        state_detail=setting_run.reason,
        budget=plan.budget,
        failures=setting_run.failures,
        targets_asked=plan.request.count,
    )


def _state(setting_run: SettingRun, entry: AgentEntry | None) -> tuple[DeviceState, str]:
    if setting_run.status == "lost":
        return "lost", setting_run.reason
    if setting_run.status == "failed":
        return "failed", setting_run.reason
    if setting_run.status == "finished":
        return "done", setting_run.reason
    if entry is None or not entry.present:
        if entry is None or entry.usable:
            return "offline", "not seen since the run was resumed"
        return "offline", entry.idle_reason()
    task = _running(setting_run, entry)
    if task is not None:
        purpose = task.record.purpose
        if entry.phase == "fetching":
            return "fetching", "the bundle"
        if entry.phase == "waiting":
            return "waiting", entry.resting or "for another agent of its host"
        if purpose == "verification":
            return "verifying", f"{task.record.target_ms:g} ms: {task.record.architecture.fingerprint}"
        return "measuring", f"{purpose} {task.record.architecture.fingerprint}"
    if setting_run.plan is not None:
        return "waiting", "for the search"
    if setting_run.evaluations:
        return "waiting", "for the winners' accuracy"
    return ("waiting", "its device measures another setting") if setting_run.ready else ("idle", "")


def _running(setting_run: SettingRun, entry: AgentEntry) -> Any:
    if entry.phase_task is not None:
        return setting_run.leased.get(entry.phase_task.task_id)
    return next(iter(setting_run.leased.values()), None)


def _progress(setting_run: SettingRun, entry: AgentEntry | None) -> ProgressSnapshot | None:
    if entry is None or entry.phase is None or entry.phase_task is None:
        return None
    if entry.phase_task.task_id not in setting_run.leased:
        return None
    return ProgressSnapshot(entry.phase, entry.phase_fraction, 1.0)


def _target(setting_run: SettingRun, target: TargetState) -> TargetSnapshot:
    evaluated, _ = setting_run.accuracy_of(target.architecture if target.status == "met" else None)
    met, reason = target.status == "met" if target.status != "open" else None, target.reason
    if target.status == "infeasible":
        reason = f"infeasible: {target.reason}"
    elif met is None and setting_run.status != "running":
        met, reason = False, unreached(setting_run.status)
    return TargetSnapshot(
        target_ms=target.target_ms,
        predicted_ms=target.predicted_ms,
        measured_ms=target.measured_ms,
        verified_ms=target.verified_ms,
        accuracy=target.accuracy,
        evaluated_accuracy=evaluated,
        met=met,
        reason=reason,
        typical_ms=target.typical_ms,
        note=target.note,
    )


# -- stored ----------------------------------------------------------------------------------------------------


def winner_record(setting_run: SettingRun, state: TargetState) -> WinnerRecord:
    """What the store keeps of a target whose fate is known."""
    accuracy, images = setting_run.accuracy_of(state.architecture if state.status == "met" else None)
    costs = _costs(setting_run, state)
    outcome = TargetOutcome(
        target_ms=state.target_ms,
        architecture=state.architecture,
        predicted_ms=state.predicted_ms,
        measured_ms=state.measured_ms,
        verified_ms=state.verified_ms,
        predicted_accuracy=state.accuracy,
        accuracy=accuracy,
        accuracy_images=images,
        parameters=costs.get("parameters"),
        macs=costs.get("macs"),
        peak_activation_bytes=costs.get("peak_activation_bytes"),
        sha256=state.sha256,
        reason=f"infeasible: {state.reason}" if state.status == "infeasible" else state.reason,
        typical_ms=state.typical_ms,
        note=state.note,
    )
    fields = asdict(outcome)
    fields["architecture"] = state.architecture.model_dump(mode="json") if state.architecture else None
    return WinnerRecord(
        setting_run.run_id,
        setting_run.device,
        setting_run.setting.label,
        state.target_ms,
        state.status == "met",
        fields,
    )


def _costs(setting_run: SettingRun, state: TargetState) -> dict[str, int]:
    if state.genome is None:
        return {}
    return dict(_costs_of(setting_run.search.space, state.genome.tobytes()))


@lru_cache(maxsize=4096)
def _costs_of(space: DesignSpace, genome: bytes) -> dict[str, int]:
    """Devices of a fleet often end with the same subnets."""
    found = subnet_costs(space, np.frombuffer(genome, dtype=np.int16)[None])
    return {name: round(float(found[name][0])) for name in ("parameters", "macs", "peak_activation_bytes")}


def outcome_of(store: MeasurementStore, run_id: str) -> CampaignOutcome:
    """A stored run as the artifacts and the report want it; it may still be running."""
    run = store.run(run_id)
    settings = settings_of(run)
    outcomes: dict[tuple[str, str], list[OutcomeRecord]] = {}
    for found in store.outcomes(run_id):
        outcomes.setdefault((found.task.device, found.task.setting_label), []).append(found)
    winners: dict[tuple[str, str], list[WinnerRecord]] = {}
    for winner in store.winners(run_id):
        winners.setdefault((winner.device, winner.setting_label), []).append(winner)
    keys = {(device.device, device.setting.label): device for device in store.devices(run_id)}
    return CampaignOutcome(
        run_id=run_id,
        supernet=SupernetProvenance(
            run.supernet, run.bundle_sha256, settings.design_space, settings.source, settings.checkpoint_sha256
        ),
        strategy=settings.plan.strategy,
        budget=settings.plan.budget,
        bounds=settings.plan.bounds,
        started_s=run.created_unix_s,
        finished_s=run.finished_unix_s,
        versions=settings.versions,
        devices=tuple(
            _contained_outcome(device, settings.plan, outcomes.get(key, []), winners.get(key, []))
            for key, device in keys.items()
        ),
    )


def _contained_outcome(
    device: DeviceRecord, plan: CampaignPlan, outcomes: list[OutcomeRecord], winners: list[WinnerRecord]
) -> DeviceOutcome:
    """The outcome of a device setting; where what is stored cannot be read, only that."""
    try:
        return _device_outcome(device, plan, outcomes, winners)
    except Exception as error:
        _log.error("what is stored of %s/%s cannot be read", device.device, device.setting.label, exc_info=error)
        return DeviceOutcome(
            device=device.device,
            setting=device.setting,
            status="failed",
            reason=f"what is stored of it cannot be read: {one_line(error)}",
            targets_asked=plan.request.count,
            condition_asked=plan.conditions,
        )


def _device_outcome(
    device: DeviceRecord, plan: CampaignPlan, outcomes: list[OutcomeRecord], winners: list[WinnerRecord]
) -> DeviceOutcome:
    history = tuple(PredictorPoint(point[0], _error(point)) for point in device.learning)
    rows, failures = _rows(outcomes)
    return DeviceOutcome(
        device=device.device,
        setting=device.setting,
        status=device.status,
        profile=device.info.profile,
        versions=dict(device.info.versions),
        reason=device.reason,
        rows=rows,
        failures=failures,
        predictor=history[-1].error if history else None,
        predictor_history=history,
        targets=_target_outcomes(device, plan.request, winners),
        targets_asked=stored_targets_asked(device, plan.request),
        targets_note=device.targets_note,
        condition_asked=plan.conditions,
        wire_bytes=device.wire_bytes,
    )


def _rows(outcomes: list[OutcomeRecord]) -> tuple[tuple[MeasurementRow, ...], tuple[FailureRow, ...]]:
    """Sort outcomes in order of arrival into measurements and failures; of several attempts at a task one counts."""
    rows, failures = [], []
    known: set[str] = set()
    for found in outcomes:
        task, counted = found.task, found.key.task_id not in known
        known.add(found.key.task_id)
        if isinstance(found.outcome, Failed):
            failures.append(
                FailureRow(
                    task_id=task.task_id,
                    attempt=found.key.attempt,
                    purpose=task.purpose,
                    architecture=task.architecture,
                    reason=found.outcome.reason,
                    detail=found.outcome.detail,
                    target_ms=task.target_ms,
                    counted=counted,
                )
            )
        else:
            rows.append(
                MeasurementRow(
                    task_id=task.task_id,
                    attempt=found.key.attempt,
                    purpose=task.purpose,
                    architecture=task.architecture,
                    measurement=found.outcome,
                    predicted_ms=task.predicted_ms,
                    predicted_std_ms=task.predicted_std_ms,
                    predicted_accuracy=task.predicted_accuracy,
                    target_ms=task.target_ms,
                    counted=counted,
                )
            )
    return tuple(rows), tuple(failures)


def known_targets_ms(device: DeviceRecord, request: TargetRequest) -> tuple[float, ...]:
    """Return the known targets of a stored device setting: the resolved ones, before that those of the request."""
    return device.targets_ms or request.fixed_ms


def stored_targets_asked(device: DeviceRecord, request: TargetRequest) -> int:
    """Count the targets that were asked for on a stored device setting."""
    return targets_asked(request.count, None if device.targets_ms is None else len(device.targets_ms))


@dataclass(frozen=True)
class _StoredTargets:
    targets: tuple[WinnerRecord, ...]
    targets_asked: int


def stored_totals(store: MeasurementStore, run_id: str, request: TargetRequest) -> TargetTotals:
    """Targets met and asked for in a stored run."""
    winners: dict[tuple[str, str], list[WinnerRecord]] = {}
    for winner in store.winners(run_id):
        winners.setdefault((winner.device, winner.setting_label), []).append(winner)
    return target_totals(
        _StoredTargets(
            tuple(winners.get((device.device, device.setting.label), ())), stored_targets_asked(device, request)
        )
        for device in store.devices(run_id)
    )


def _target_outcomes(
    device: DeviceRecord, request: TargetRequest, winners: list[WinnerRecord]
) -> tuple[TargetOutcome, ...]:
    reason, running = unreached(device.status), device.status == "running"
    found = {
        target_ms: TargetOutcome(target_ms, reason=reason, open=running)
        for target_ms in known_targets_ms(device, request)
    }
    found |= {winner.target_ms: _target_outcome(winner) for winner in winners}
    return tuple(target for _, target in sorted(found.items()))


def _target_outcome(winner: WinnerRecord) -> TargetOutcome:
    fields = dict(winner.fields)
    if fields.get("architecture") is not None:
        fields["architecture"] = Architecture.model_validate(fields["architecture"])
    return TargetOutcome(**fields)


def _error(point: tuple[int, float, float | None, int]) -> PredictorError:
    return PredictorError(mape_percent=point[1], spearman=point[2], held_out=point[3])
