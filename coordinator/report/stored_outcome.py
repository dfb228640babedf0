"""The outcome of a stored run, ended or not, from what its store holds."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from fleetnas.coordinator.records.baselines import BaselineRecord
from fleetnas.coordinator.records.board_share import BoardShare
from fleetnas.coordinator.records.outcome import (
    CampaignOutcome,
    DeviceOutcome,
    FailedMeasurement,
    SupernetProvenance,
    TakenMeasurement,
    TargetOutcome,
)
from fleetnas.coordinator.records.plan import CampaignPlan, settings_of
from fleetnas.coordinator.records.statuses import RunStatus, SettingStatus
from fleetnas.coordinator.records.stored import DeviceRecord, ImagePart, OutcomeRecord, WinnerRecord
from fleetnas.coordinator.records.target_kinds import Target
from fleetnas.coordinator.records.targets import TargetKey, key_of, ordered
from fleetnas.coordinator.records.totals import TargetTotals, target_totals, targets_asked, unreached
from fleetnas.coordinator.records.verdict import shown_reason
from fleetnas.coordinator.store.store import MeasurementStore
from fleetnas.fleet_protocol.error_text import one_line
from fleetnas.fleet_protocol.messages import Failed
from fleetnas.supernet_export.evaluation.answers import ClassAnswers

_log = logging.getLogger("fleetnas.coordinator")


def outcome_of(store: MeasurementStore, run_id: str) -> CampaignOutcome:
    """Read the outcome of a stored run, which may still be running.

    Raises:
        UsageError: the store holds no such run.
        StoreError: its settings cannot be read.
    """
    run = store.run(run_id)
    settings = settings_of(run)
    outcomes: dict[tuple[str, str], list[OutcomeRecord]] = {}
    for found in store.outcomes(run_id):
        outcomes.setdefault((found.task.device, found.task.setting_label), []).append(found)
    decided = store.winners(run_id)
    winners = _by_setting(decided)
    won = {winner.architecture.fingerprint for winner in decided if winner.met and winner.architecture is not None}
    evaluations = store.evaluations.of_subnets(run_id, won)
    answers = {(each.file_key, each.part): each.class_answers for each in evaluations}
    baselines: dict[tuple[str, str], list[BaselineRecord]] = {}
    for baseline in store.baselines.of_run(run_id):
        baselines.setdefault((baseline.device, baseline.setting_label), []).append(baseline)
    keys = {(device.device, device.setting.label): device for device in store.devices(run_id)}
    return CampaignOutcome(
        run_id=run_id,
        supernet=SupernetProvenance(
            run.supernet,
            run.bundle_sha256,
            settings.design_space,
            settings.source,
            settings.checkpoint_sha256,
            dataset=settings.dataset,
            class_names=settings.class_names,
            preprocessing=settings.preprocessing,
        ),
        strategy=settings.plan.method,
        budget=settings.plan.budget,
        bounds=settings.plan.bounds,
        started_s=run.created_unix_s,
        finished_s=run.finished_unix_s,
        versions=settings.versions,
        devices=with_shares(
            replace(
                _with_answers(
                    _contained_outcome(device, settings.plan, outcomes.get(key, []), winners.get(key, [])), answers
                ),
                baselines=_every_baseline(run_id, device, settings.plan, baselines.get(key, [])),
            )
            for key, device in keys.items()
        ),
        rerank=settings.plan.rerank,
        selected_on_reported=settings.selects_on_reported,
        class_names=settings.class_names,
        name=run.name,
        interrupted=run.status is RunStatus.INTERRUPTED,
    )


def _every_baseline(
    run_id: str, device: DeviceRecord, plan: CampaignPlan, stored: list[BaselineRecord]
) -> tuple[BaselineRecord, ...]:
    """Return the baselines of a device setting as the user named them; those that are not measured yet are empty."""
    known = {each.baseline: each for each in stored}
    return tuple(
        known.get(each.name) or BaselineRecord(run_id, device.device, device.setting.label, each.name)
        for each in plan.baselines
    )


def _with_answers(
    device: DeviceOutcome, answers: Mapping[tuple[tuple[str, str, str], ImagePart], ClassAnswers]
) -> DeviceOutcome:
    """Add what the files of met targets answered to images."""
    setting = device.setting
    found = []
    for target in device.targets:
        if not target.met or target.architecture is None:
            found.append(target)
            continue
        key = target.architecture.fingerprint, setting.runtime, setting.precision
        evaluated, selection = answers.get((key, "evaluation")), answers.get((key, "selection"))
        found.append(replace(target, answers=evaluated, selection=selection))
    return replace(device, targets=tuple(found))


def with_shares(devices: Iterable[DeviceOutcome]) -> tuple[DeviceOutcome, ...]:
    """Add to each target of a class's boards how many of them meet it, of those that verified it."""
    found = tuple(devices)
    shares: dict[tuple[str, str, float | None], BoardShare] = {}
    for device in found:
        for target in device.targets if device.board is not None else ():
            if target.verified_ms is not None:
                key = _class_of(device), device.setting.label, target.target_ms
                share = shares.get(key, BoardShare(0, 0))
                shares[key] = BoardShare(share.met + target.met, share.asked + 1)
    return tuple(
        replace(
            device,
            targets=tuple(
                replace(target, boards=shares.get((_class_of(device), device.setting.label, target.target_ms)))
                for target in device.targets
            ),
        )
        if device.board is not None
        else device
        for device in found
    )


def _class_of(device: DeviceOutcome) -> str:
    return device.board.class_name if device.board is not None else ""


def stored_totals(store: MeasurementStore, run_id: str, asked: int) -> TargetTotals:
    """Count the targets met and asked for in a stored run; `asked` of each device setting, before they resolve."""
    winners = _by_setting(store.winners(run_id))
    return target_totals(
        _StoredTargets(
            tuple(current_winners(device, winners.get((device.device, device.setting.label), []))),
            stored_targets_asked(device, asked),
        )
        for device in store.devices(run_id)
    )


def current_winners(device: DeviceRecord, winners: Iterable[WinnerRecord]) -> list[WinnerRecord]:
    """Leave out the winners of automatic targets that others took the place of once the run was resumed."""
    latencies = device.targets_ms
    return [each for each in winners if each.subnet or each.target or latencies is None or each.target_ms in latencies]


def known_targets(device: DeviceRecord, plan: CampaignPlan) -> list[TargetKey]:
    """Return the known targets of a stored device setting: given subnets, the resolved ones, or those of the plan."""
    if plan.architectures:
        return [TargetKey(plan.target_ms, architecture.fingerprint) for architecture in plan.architectures]
    request = plan.request_for(device.device, device.info)
    latencies = request.fixed_ms if device.targets_ms is None else device.targets_ms
    others = [each.text for each in request.others] if device.targets is None else device.targets
    return [*map(TargetKey, latencies), *(key_of(Target.parse(text)) for text in others)]


def stored_targets_asked(device: DeviceRecord, asked: int) -> int:
    """Count the targets that were asked for on a stored device setting; `asked` of them before they were resolved."""
    if device.targets_ms is None:
        return targets_asked(max(asked, len(device.targets or ())), None)
    return targets_asked(asked, len(device.targets_ms) + len(device.targets or ()))


@dataclass(frozen=True)
class _StoredTargets:
    targets: tuple[WinnerRecord, ...]
    targets_asked: int


def _by_setting(winners: Iterable[WinnerRecord]) -> dict[tuple[str, str], list[WinnerRecord]]:
    found: dict[tuple[str, str], list[WinnerRecord]] = {}
    for winner in winners:
        found.setdefault((winner.device, winner.setting_label), []).append(winner)
    return found


def _contained_outcome(
    device: DeviceRecord, plan: CampaignPlan, outcomes: list[OutcomeRecord], winners: list[WinnerRecord]
) -> DeviceOutcome:
    """Return the outcome of a device setting; where its stored records cannot be read, an outcome that says so."""
    try:
        return device_outcome(device, plan, outcomes, winners)
    except Exception as error:  # noqa: BLE001 - damaged records of one device setting must not hide the others
        _log.error("what is stored of %s/%s cannot be read", device.device, device.setting.label, exc_info=error)
        return DeviceOutcome(
            device=device.device,
            setting=device.setting,
            status=SettingStatus.FAILED,
            reason=f"what is stored of it cannot be read: {one_line(error)}",
            targets_asked=plan.asked_of(device.device, device.info),
            condition_asked=plan.conditions,
        )


def device_outcome(
    device: DeviceRecord, plan: CampaignPlan, outcomes: list[OutcomeRecord], winners: list[WinnerRecord]
) -> DeviceOutcome:
    """Return the outcome of a device setting from its stored records, outcomes in order of arrival."""
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
        predictor=device.learning[-1].error if device.learning else None,
        predictor_history=device.learning,
        targets=_target_outcomes(device, plan, winners),
        targets_asked=stored_targets_asked(device, plan.asked_of(device.device, device.info)),
        targets_note=device.targets_note,
        tags=device.info.tags,
        board=device.board,
        condition_asked=plan.conditions,
        wire_bytes=device.wire_bytes,
    )


def _rows(
    outcomes: list[OutcomeRecord],
) -> tuple[tuple[TakenMeasurement, ...], tuple[FailedMeasurement, ...]]:
    """Sort outcomes in order of arrival into measurements and failures; of several attempts at a task one counts."""
    rows, failures = [], []
    known: set[str] = set()
    for found in outcomes:
        task, counted = found.task, found.key.task_id not in known
        known.add(found.key.task_id)
        if isinstance(found.outcome, Failed):
            failures.append(
                FailedMeasurement(
                    task_id=task.task_id,
                    attempt=found.key.attempt,
                    purpose=task.purpose,
                    architecture=task.architecture,
                    reason=found.outcome.reason,
                    detail=found.outcome.detail,
                    target_ms=task.target_ms,
                    target=task.target,
                    counted=counted,
                )
            )
        else:
            rows.append(
                TakenMeasurement(
                    task_id=task.task_id,
                    attempt=found.key.attempt,
                    purpose=task.purpose,
                    architecture=task.architecture,
                    measurement=found.outcome,
                    predicted_ms=task.predicted_ms,
                    predicted_std_ms=task.predicted_std_ms,
                    predicted_accuracy=task.predicted_accuracy,
                    target_ms=task.target_ms,
                    target=task.target,
                    counted=counted,
                )
            )
    return tuple(rows), tuple(failures)


def _target_outcomes(
    device: DeviceRecord, plan: CampaignPlan, winners: list[WinnerRecord]
) -> tuple[TargetOutcome, ...]:
    running = device.status is SettingStatus.RUNNING
    reason = device.reason if running and device.reason else unreached(device.status)
    given = {architecture.fingerprint: architecture for architecture in plan.architectures}
    found = {
        key: TargetOutcome(
            key.target_ms, given.get(key.subnet), reason=reason, open=running, subnet=key.subnet, target=key.target
        )
        for key in known_targets(device, plan)
    }
    found |= {
        TargetKey(winner.target_ms, winner.subnet, winner.target): _target_outcome(winner)
        for winner in current_winners(device, winners)
    }
    return tuple(found[key] for key in ordered(found))


def _target_outcome(winner: WinnerRecord) -> TargetOutcome:
    return TargetOutcome(
        target_ms=winner.target_ms,
        architecture=winner.architecture,
        predicted_ms=winner.predicted_ms,
        measured_ms=winner.measured_ms,
        verified_ms=winner.verified_ms,
        typical_ms=winner.typical_ms,
        predicted_accuracy=winner.predicted_accuracy,
        accuracy=winner.accuracy,
        accuracy_images=winner.accuracy_images,
        parameters=winner.parameters,
        macs=winner.macs,
        peak_activation_bytes=winner.peak_activation_bytes,
        sha256=winner.sha256,
        reason=shown_reason(winner.status, winner.reason),
        note=winner.note,
        subnet=winner.subnet,
        target=winner.target,
        value=winner.value,
        value_low=winner.value_low,
        value_high=winner.value_high,
        typical_value=winner.typical_value,
        refused=not winner.met,
    )
