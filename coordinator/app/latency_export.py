"""Export what a run learned about the latency of one device setting: a predictor file, and block tables beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fleetnas.agent.runtimes.settings import parse_setting
from fleetnas.coordinator.app.setting_learners import SettingLearners
from fleetnas.coordinator.predictors.features import FeatureMap
from fleetnas.coordinator.records.outcome import DeviceOutcome
from fleetnas.coordinator.records.plan import RunSettings, settings_of
from fleetnas.coordinator.report.stored_outcome import outcome_of
from fleetnas.coordinator.search.blas import single_threaded_blas
from fleetnas.coordinator.search.predictor_file import (
    PREDICTOR_FILE,
    TABLE_FOLDER,
    MeasuredSubnet,
    PredictorFile,
    SlotLatencies,
    Slowdown,
    latency_of,
)
from fleetnas.coordinator.search.table_fit import TableError, write_block_tables
from fleetnas.coordinator.store.store import MeasurementStore
from fleetnas.coordinator.tuning.setting_latency import SettingLatency
from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.fleet_protocol.suggestions import did_you_mean
from fleetnas.supernet_export.spaces.base import DesignSpace
from fleetnas.supernet_export.spaces.mbconv import MBConvSpace
from fleetnas.supernet_export.spaces.registry import make_space

#: Different subnets that must have been measured.
_LEAST_SUBNETS = 3
#: Random subnets over which the model discrepancy is averaged.
_EXAMPLES = 200


@dataclass(frozen=True)
class ExportedLatency:
    """The files of one export."""

    device: str
    setting: str
    predictor: Path
    subnets: int
    """Measured subnets that the predictor learned from."""
    held_out_percent: float | None
    """The predictor's own mean absolute error, held out."""
    tables: Path | None
    """Folder of the block tables; None where the design space has none."""
    table_error: TableError | None
    note: str = ""
    """Reason why there are no block tables."""


def export_latency(
    store: MeasurementStore, run_id: str, device: str, setting: str | None, out: Path
) -> ExportedLatency:
    """Write `predictor.json`, and `ofa/<resolution>_lookup_table.yaml` where the design space has such tables.

    Raises:
        UsageError: there is no such run, device or setting, or too little was measured there.
        OSError: the folder cannot be written.
    """
    settings, outcome = settings_of(store.run(run_id)), outcome_of(store, run_id)
    chosen = _chosen(run_id, outcome.devices, device, setting)
    space = make_space(settings.design_space, settings.space_options)
    with single_threaded_blas():
        learned = SettingLearners(store, space, settings.plan, outcome.started_s).latency(run_id, chosen)
        known = len(learned.observations.table())
        if known < _LEAST_SUBNETS:
            raise UsageError(
                f"run {run_id} knows the latency of {known} subnets on {chosen.label}, and a predictor needs "
                f"{_LEAST_SUBNETS}; let the run go on first"
            )
        found = _predictor_file(run_id, settings, chosen, space, learned)
        file = out / PREDICTOR_FILE
        found.write(file)
        tables, error, note = None, None, _no_tables(space)
        if isinstance(space, MBConvSpace) and not note:
            latency = latency_of(found, space, file)
            tables = out / TABLE_FOLDER
            error = write_block_tables(tables, space, latency.predict, latency.slot_tables())
    return ExportedLatency(
        chosen.device, chosen.setting.label, file, known, found.held_out_percent, tables, error, note
    )


def _no_tables(space: DesignSpace) -> str:
    if not isinstance(space, MBConvSpace):
        return f"no block tables: OFA's format has none for {space.name}"
    if space.aspect != (1, 1):
        return "no block tables: they are of square images"
    return ""


def _chosen(run_id: str, devices: Sequence[DeviceOutcome], device: str, setting: str | None) -> DeviceOutcome:
    named = [found for found in devices if found.device == device]
    if not named:
        names = sorted({found.device for found in devices})
        near = did_you_mean(device, names)
        raise UsageError(f"run {run_id} has no device {device}{near} it has {(', '.join(names) or 'none')[:400]}")
    labels = ", ".join(found.setting.label for found in named)
    if setting is None:
        if len(named) > 1:
            raise UsageError(f"{device} has the settings {labels}; choose one with --setting")
        return named[0]
    label = setting if setting in labels.split(", ") else parse_setting(setting).label
    found = next((each for each in named if each.setting.label == label), None)
    if found is None:
        raise UsageError(f"{device} has no setting {setting} in run {run_id}; it has {labels}")
    return found


def _predictor_file(
    run_id: str, settings: RunSettings, device: DeviceOutcome, space: DesignSpace, learned: SettingLatency
) -> PredictorFile:
    features, predictor, speed = FeatureMap(space), learned.predictor, learned.speed
    constant_ms, tables = features.slot_tables(predictor.weights)
    covariance = predictor.covariance
    error = learned.held_out_error()
    examples = features.features(space.sample(_EXAMPLES, np.random.default_rng(0)))
    mean, with_discrepancy = predictor.predict(examples, include_noise=True)
    _, without = predictor.predict(examples)
    share = np.sqrt(np.maximum(with_discrepancy**2 - without**2, 0.0)) / np.maximum(np.abs(mean), 1e-9)
    table = learned.observations.table()
    return PredictorFile(
        run_id=run_id,
        device=device.device,
        setting=device.setting.label,
        supernet=settings.supernet_path.replace("\\", "/").rpartition("/")[2],
        condition=device.condition,
        space=space.name,
        space_options=dict(space.options),
        constant_ms=constant_ms,
        slots=tuple(
            SlotLatencies(slot=name, variants_ms=tuple(values.tolist()))
            for name, values in zip(space.slot_names, tables, strict=True)
        ),
        slowdown=Slowdown(level=speed.level, slope=speed.slope, centre=speed.centre),
        held_out_percent=error.mape_percent,
        held_out=error.held_out,
        features=features.names,
        weights_ms=tuple(predictor.weights.tolist()),
        weights_covariance_ms2=tuple(tuple(row[: i + 1].tolist()) for i, row in enumerate(covariance)),
        discrepancy_percent=100.0 * float(np.median(share)),
        measured=tuple(
            MeasuredSubnet(architecture=architecture, typical_ms=typical_ms)
            for architecture, typical_ms in zip(space.decode(table.genomes), table.typical_ms.tolist(), strict=True)
        ),
    )
