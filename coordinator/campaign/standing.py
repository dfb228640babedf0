"""How a campaign stands: the live snapshot, the stored winners, and the outcome of any stored run."""

from __future__ import annotations

from dataclasses import asdict
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from coordinator.campaign.plan import CampaignPlan, RunSettings
from coordinator.campaign.proposal import TargetState
from coordinator.campaign.track import SettingTrack
from coordinator.fleet.registry import AgentEntry
from coordinator.report.outcome import (
    CampaignOutcome,
    DeviceOutcome,
    FailureRow,
    MeasurementRow,
    PredictorPoint,
    SupernetProvenance,
    TargetOutcome,
)
from coordinator.search.bounds import subnet_costs
from coordinator.store.records import DeviceRecord, OutcomeRecord, WinnerRecord
from coordinator.store.store import MeasurementStore
from coordinator.view.snapshot import (
    DeviceSnapshot,
    DeviceState,
    PredictorError,
    ProgressSnapshot,
    Snapshot,
    TargetSnapshot,
)
from fleet_protocol.architecture import Architecture
from fleet_protocol.messages import Failed
from supernet_export.spaces.base import DesignSpace

if TYPE_CHECKING:
    from coordinator.campaign.campaign import Campaign

_SHOWN_LOG_LINES = 20


# -- live ------------------------------------------------------------------------------------------------------


def snapshot_of(campaign: Campaign, now_unix_s: float) -> Snapshot:
    """One immutable picture of a running campaign."""
    return Snapshot(
        run_id=campaign.identity.run_id,
        supernet=campaign.identity.supernet,
        started_s=campaign.started_unix_s,
        now_s=now_unix_s,
        phase=campaign.phase,
        devices=tuple(
            _device(track, campaign.registry.agents.get(track.device), campaign.plan)
            for track in campaign.tracks.values()
        ),
        log=tuple(list(campaign.log)[-_SHOWN_LOG_LINES:]),
    )


def _device(track: SettingTrack, entry: AgentEntry | None, plan: CampaignPlan) -> DeviceSnapshot:
    state, detail = _state(track, entry)
    error = track.learning[-1] if track.learning else None
    return DeviceSnapshot(
        device=track.device,
        setting_label=track.setting.label,
        state=state,
        state_detail=detail,
        temperature_c=track.temperature_c,
        throttled=track.throttled,
        measurements=track.search.measurements,
        budget=plan.budget,
        failures=track.failures,
        quarantined=track.search.quarantined,
        current_progress=_progress(track, entry),
        predictor_error=_error(error) if error is not None else None,
        targets=tuple(_target(track, target) for target in track.search.targets),
    )


def _state(track: SettingTrack, entry: AgentEntry | None) -> tuple[DeviceState, str]:
    if track.status == "lost":
        return "lost", track.reason
    if track.status in ("finished", "failed"):
        return "done", track.reason
    if entry is None or not entry.usable:
        return "offline", entry.idle_reason() if entry is not None else "not seen since the run was resumed"
    task = _running(track, entry)
    if task is not None:
        purpose = task.record.purpose
        if entry.phase == "fetching":
            return "fetching", "the bundle"
        if entry.phase == "waiting":
            return "waiting", entry.resting or "for another agent of its host"
        if purpose == "verification":
            return "verifying", f"{task.record.target_ms:g} ms: {task.record.architecture.fingerprint}"
        return "measuring", f"{purpose} {task.record.architecture.fingerprint}"
    if track.plan is not None:
        return "waiting", "for the search"
    if track.evaluations:
        return "waiting", "for the winners' accuracy"
    return ("waiting", "its device measures another setting") if track.ready else ("idle", "")


def _running(track: SettingTrack, entry: AgentEntry) -> Any:
    if entry.phase_task is not None:
        return track.leased.get(entry.phase_task.task_id)
    return next(iter(track.leased.values()), None)


def _progress(track: SettingTrack, entry: AgentEntry | None) -> ProgressSnapshot | None:
    if entry is None or entry.phase is None or entry.phase_task is None:
        return None
    if entry.phase_task.task_id not in track.leased:
        return None
    return ProgressSnapshot(entry.phase, entry.phase_fraction, 1.0)


def _target(track: SettingTrack, target: TargetState) -> TargetSnapshot:
    evaluated = track.accuracies.get(target.target_ms)
    return TargetSnapshot(
        target_ms=target.target_ms,
        predicted_ms=target.predicted_ms,
        measured_ms=target.measured_ms,
        verified_ms=target.verified_ms,
        accuracy=target.accuracy,
        evaluated_accuracy=evaluated[0] if evaluated is not None else None,
        met=None if target.status == "open" else target.status == "met",
        reason=f"infeasible: {target.reason}" if target.status == "infeasible" else target.reason,
    )


# -- stored ----------------------------------------------------------------------------------------------------


def winner_record(track: SettingTrack, state: TargetState) -> WinnerRecord:
    """What the store keeps of a target whose fate is known."""
    accuracy, images = track.accuracies.get(state.target_ms, (None, None))
    outcome = TargetOutcome(
        target_ms=state.target_ms,
        architecture=state.architecture,
        predicted_ms=state.predicted_ms,
        measured_ms=state.measured_ms,
        verified_ms=state.verified_ms,
        predicted_accuracy=state.accuracy,
        accuracy=accuracy,
        accuracy_images=images,
        **_costs(track, state),
        sha256=state.sha256,
        reason=f"infeasible: {state.reason}" if state.status == "infeasible" else state.reason,
    )
    fields = asdict(outcome)
    fields["architecture"] = state.architecture.model_dump(mode="json") if state.architecture else None
    return WinnerRecord(track.run_id, track.device, track.setting.label, state.target_ms, state.status == "met", fields)


def _costs(track: SettingTrack, state: TargetState) -> dict[str, int]:
    if state.genome is None:
        return {}
    return dict(_costs_of(track.search.space, state.genome.tobytes()))


@lru_cache(maxsize=4096)
def _costs_of(space: DesignSpace, genome: bytes) -> dict[str, int]:
    """Devices of a fleet often end with the same subnets."""
    found = subnet_costs(space, np.frombuffer(genome, dtype=np.int16)[None])
    return {name: round(float(found[name][0])) for name in ("parameters", "macs", "peak_activation_bytes")}


def outcome_of(store: MeasurementStore, run_id: str) -> CampaignOutcome:
    """A stored run as the take-home and the report want it; it may still be running."""
    run = store.run(run_id)
    settings = RunSettings.model_validate(run.settings)
    outcomes, winners = store.outcomes(run_id), store.winners(run_id)
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
            _device_outcome(
                device,
                [o for o in outcomes if (o.task.device, o.task.setting_label) == (device.device, device.setting.label)],
                [w for w in winners if (w.device, w.setting_label) == (device.device, device.setting.label)],
            )
            for device in store.devices(run_id)
        ),
    )


def _device_outcome(device: DeviceRecord, outcomes: list[OutcomeRecord], winners: list[WinnerRecord]) -> DeviceOutcome:
    history = tuple(PredictorPoint(point[0], _error(point)) for point in device.learning)
    rows, failures = [], []
    for found in outcomes:
        task = found.task
        if isinstance(found.outcome, Failed):
            failures.append(
                FailureRow(
                    task.task_id, found.key.attempt, task.architecture, found.outcome.reason, found.outcome.detail
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
                )
            )
    return DeviceOutcome(
        device=device.device,
        setting=device.setting,
        status=device.status,
        profile=device.info.profile,
        versions=dict(device.info.versions),
        reason=device.reason,
        rows=tuple(rows),
        failures=tuple(failures),
        predictor=history[-1].error if history else None,
        predictor_history=history,
        targets=tuple(_target_outcome(winner) for winner in winners),
        wire_bytes=device.wire_bytes,
    )


def _target_outcome(winner: WinnerRecord) -> TargetOutcome:
    fields = dict(winner.fields)
    if fields.get("architecture") is not None:
        fields["architecture"] = Architecture.model_validate(fields["architecture"])
    return TargetOutcome(**fields)


def _error(point: tuple[int, float, float | None, int]) -> PredictorError:
    return PredictorError(mape_percent=point[1], spearman=point[2], held_out=point[3])
