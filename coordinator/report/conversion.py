"""Converts the outcome of a run to the models of `results.json`."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime, timezone
from functools import lru_cache

from fleetnas.coordinator.records.accuracy_order import accuracy_warnings
from fleetnas.coordinator.records.data_quality import regimes_of
from fleetnas.coordinator.records.outcome import CampaignOutcome, DeviceOutcome, TargetOutcome
from fleetnas.coordinator.records.statuses import RunStatus, SettingStatus
from fleetnas.coordinator.records.stored import ImagePart
from fleetnas.coordinator.records.target_kinds import kind_of_target
from fleetnas.coordinator.records.targets import target_label
from fleetnas.coordinator.records.totals import run_end, target_totals
from fleetnas.coordinator.report.baseline_results import baseline_results
from fleetnas.coordinator.report.results import (
    BoardResult,
    BoardShareResult,
    ClassReport,
    DeviceResult,
    FailureResult,
    LearningResult,
    PredictorResult,
    QualityResult,
    RegimeResult,
    Results,
    SupernetResult,
    TargetResult,
)
from fleetnas.fleet_protocol.layer_times import LayerTime
from fleetnas.fleet_protocol.messages import Measurement
from fleetnas.supernet_export.evaluation.answers import ClassAnswers

_log = logging.getLogger("fleetnas.coordinator")

#: Path, relative to results.json, and size of a target's model file, or None where there is no such file.
ModelLookup = Callable[[DeviceOutcome, TargetOutcome], tuple[str, int] | None]


def results_of(outcome: CampaignOutcome, model_of: ModelLookup) -> Results:
    """Convert an outcome; `model_of` finds the model file of a target."""
    fleet = tuple(_contained_result(device, model_of) for device in outcome.devices)
    totals = target_totals(fleet)
    return Results(
        run_id=outcome.run_id,
        run_name=outcome.name,
        status=run_status(outcome),
        started_at=_moment(outcome.started_s),
        finished_at=None if outcome.finished_s is None else _moment(outcome.finished_s),
        strategy=outcome.strategy,
        budget=outcome.budget,
        bounds=outcome.bounds.given(),
        supernet=SupernetResult(
            name=outcome.supernet.name,
            sha256=outcome.supernet.sha256,
            design_space=outcome.supernet.design_space,
            source=outcome.supernet.source,
            checkpoint_sha256=outcome.supernet.checkpoint_sha256,
            dataset=outcome.supernet.dataset,
            class_names=outcome.supernet.class_names,
            preprocessing=outcome.supernet.preprocessing,
        ),
        versions=outcome.versions,
        targets_met=totals.met,
        targets_asked=totals.asked,
        rerank=outcome.rerank,
        accuracy_warnings=tuple(accuracy_warnings(outcome)),
        class_reports=_class_reports(outcome),
        fleet=fleet,
    )


def _class_reports(outcome: CampaignOutcome) -> dict[str, ClassReport]:
    """Report each winner's file once, however many targets and devices it is for."""
    return {
        target.sha256: class_report(found, part, outcome.class_names)
        for device in outcome.devices
        for target in device.targets
        for part, found in (("selection", target.selection), ("evaluation", target.answers))  # the last one stays
        if target.met and target.sha256 is not None and found is not None
    }


@lru_cache(maxsize=1024)
def class_report(answers: ClassAnswers, part: ImagePart, class_names: tuple[str, ...] | None) -> ClassReport:
    """Report what a model file answered, class by class; without names classes are numbered from 0.

    It is cached, as results are written again and again while a run goes on.
    """
    names = class_names if class_names is not None and len(class_names) == answers.classes else None
    names = names or tuple(str(number) for number in range(answers.classes))
    return ClassReport(
        part=part,
        images=answers.images,
        accuracy=answers.accuracy,
        macro_f1=answers.macro_f1,
        recall={
            name: None if math.isnan(recall) else recall
            for name, recall in zip(names, answers.recall.tolist(), strict=True)
        },
        confusion={
            names[label]: {names[answer]: int(row[answer]) for answer in row.nonzero()[0]}
            for label, row in enumerate(answers.confusion)
            if row.any()
        },
    )


def run_status(outcome: CampaignOutcome) -> RunStatus:
    """Return the status of a run: running, interrupted, or its end by the targets that were met."""
    if outcome.finished_s is None:
        return RunStatus.INTERRUPTED if outcome.interrupted else RunStatus.RUNNING
    return run_end(target_totals(outcome.devices), [device.status for device in outcome.devices])


def _contained_result(device: DeviceOutcome, model_of: ModelLookup) -> DeviceResult:
    """Convert a device setting. One whose values cannot be written costs its own entry, not the file."""
    try:
        return _device_result(device, model_of)
    except OSError:
        raise
    except Exception as error:  # noqa: BLE001 - one device setting must not cost the whole file
        _log.error("the results of %s cannot be written", device.label, exc_info=error)
        kind = type(error).__name__
    reason = f"its results cannot be written ({kind}, the log has the trace); they are in the store"
    bare = DeviceOutcome(
        device=device.device,
        setting=device.setting,
        status=SettingStatus.FAILED,
        reason=reason,
        targets_asked=max(device.targets_asked, len(device.targets)),
        condition_asked=device.condition_asked,
    )
    return _device_result(bare, model_of)


def _device_result(device: DeviceOutcome, model_of: ModelLookup) -> DeviceResult:
    quality = device.quality
    return DeviceResult(
        device=device.device,
        runtime=device.setting.label,
        setting=device.setting,
        status=device.status,
        reason=device.reason,
        condition=device.condition,
        measurements=device.measurements,
        verifications=sum(row.counted and row.purpose == "verification" for row in device.rows),
        timed_s=device.timed_s,
        quality=QualityResult(
            ok=quality.ok,
            noisy=quality.noisy,
            slowed=quality.slowed,
            unknown_speed=quality.unknown_speed,
            largest_slowdown=quality.largest_slowdown,
        ),
        regimes=tuple(
            RegimeResult(
                since=_device_moment(regime.since_unix_s),
                slowdown=regime.slowdown,
                measurements=regime.measurements,
            )
            for regime in regimes_of(device.taken)
        ),
        predictor=None if device.predictor is None else PredictorResult.of(device.predictor),
        learning=tuple(
            LearningResult(
                measurements=point.measurements,
                mape_percent=point.error.mape_percent,
                spearman=point.error.spearman,
                held_out=point.error.held_out,
                transfer_weight=point.error.transfer_weight,
            )
            for point in device.predictor_history
        ),
        targets=tuple(_target_result(device, target, model_of) for target in device.targets),
        targets_asked=max(device.targets_asked, len(device.targets)),
        targets_note=device.targets_note,
        tags=device.tags,
        board=None if device.board is None else BoardResult(**asdict(device.board)),
        failures=_failures(device),
        baselines=baseline_results(device),
        wire_bytes=device.wire_bytes,
        profile=device.profile,
        versions=device.versions,
    )


def _failures(device: DeviceOutcome) -> tuple[FailureResult, ...]:
    return tuple(
        FailureResult(
            task_id=failure.task_id,
            attempt=failure.attempt,
            counted=failure.counted,
            purpose=failure.purpose,
            target_ms=failure.target_ms,
            target=failure.target,
            architecture=failure.architecture,
            reason=failure.reason,
            detail=failure.detail,
        )
        for failure in device.failures
    )


def _target_result(device: DeviceOutcome, target: TargetOutcome, model_of: ModelLookup) -> TargetResult:
    model, size = model_of(device, target) or (None, None)
    return TargetResult(
        target_ms=target.target_ms,
        target=target.target,
        kind=kind_of_target(target.target),
        label=target_label(target.target_ms, target.target),
        value=target.value,
        value_low=target.value_low,
        value_high=target.value_high,
        typical_value=target.typical_value,
        met=target.met,
        open=target.open,
        reason=target.reason,
        note=target.note,
        architecture=target.architecture,
        predicted_ms=target.predicted_ms,
        measured_ms=target.measured_ms,
        verified_ms=target.verified_ms,
        typical_ms=target.typical_ms,
        predicted_accuracy=target.predicted_accuracy,
        accuracy=target.accuracy,
        accuracy_images=target.accuracy_images,
        selection_accuracy=None if target.selection is None else target.selection.accuracy,
        selection_images=None if target.selection is None else target.selection.images,
        parameters=target.parameters,
        macs=target.macs,
        peak_activation_bytes=target.peak_activation_bytes,
        energy_mj=_energy_mj(device, target),
        layers=_layers(device, target),
        model=model,
        model_bytes=size,
        sha256=target.sha256,
        subnet=target.subnet or None,
        boards=None if target.boards is None else BoardShareResult.of(target.boards),
    )


def _energy_mj(device: DeviceOutcome, target: TargetOutcome) -> float | None:
    """Return the energy of the last verification of the target's file that has one."""
    found = [each.energy_mj for each in _verifications(device, target)]
    return next((energy for energy in reversed(found) if energy is not None), None)


def _layers(device: DeviceOutcome, target: TargetOutcome) -> tuple[LayerTime, ...]:
    """Return the layers of the last verification of the target's file that was profiled."""
    found = [each.layers for each in _verifications(device, target)]
    return next((layers for layers in reversed(found) if layers), ())


def _verifications(device: DeviceOutcome, target: TargetOutcome) -> list[Measurement]:
    """Return the verifications of the target's file, in the order in which they were stored."""
    return [
        row.measurement
        for row in device.rows
        if row.purpose == "verification" and row.measurement.model_sha256 == target.sha256
    ]


def _moment(unix_s: float) -> datetime:
    return datetime.fromtimestamp(unix_s, tz=timezone.utc)


def _device_moment(unix_s: float | None) -> datetime | None:
    return None if unix_s is None else _moment(unix_s)
