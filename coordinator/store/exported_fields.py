"""One stored measurement as a flat row: the fields of `fleetnas export-data`, described in `docs/store.md`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic_core import to_json

from fleetnas.coordinator.records.baselines import BaselineRecord
from fleetnas.coordinator.records.stored import DeviceRecord, OutcomeRecord, RunRecord
from fleetnas.coordinator.store.store import MeasurementStore
from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.fleet_protocol.messages import Conditions, Measurement, Message
from fleetnas.fleet_protocol.suggestions import did_you_mean

Kind = Literal["text", "integer", "number", "boolean", "numbers"]
#: The type of a field in one row; None: unknown.
Value = str | int | float | bool | tuple[float, ...] | None

RAW_TIMES = "times_us"
_KINDS: dict[str, Kind] = {
    "string": "text", "integer": "integer", "number": "number", "boolean": "boolean", "array": "numbers",
}  # fmt: skip


@dataclass(frozen=True)
class Field:
    """One column."""

    name: str
    kind: Kind


def _message_fields(message: type[Message], suffix: str = "") -> tuple[Field, ...]:
    """Return the fields of a message that are single values or lists, from its JSON schema."""
    fields = []
    for name, schema in message.model_json_schema()["properties"].items():
        types = {part.get("type") for part in schema.get("anyOf", [schema])} - {"null", None}
        if types:  # a list of objects is JSON
            kind = "text" if "$ref" in schema.get("items", {}) else _KINDS[types.pop()]
            fields.append(Field(name + suffix, kind))
    return tuple(fields)


_OF_MEASUREMENT = _message_fields(Measurement)
_SUFFIXES = ("before", "after")
_CONDITIONS = tuple(Conditions.model_fields)
_LAST = ("layers", "levels_ms", "session_medians_ms", "block_medians_ms", RAW_TIMES)

_OF_TASK = (
    *("purpose", "target_ms", "target", "predicted_ms", "predicted_std_ms", "predicted_accuracy"),
    *("asked_half_width_percent", "asked_sessions"),
)

#: Every field, in order; the long ones are last.
FIELDS: tuple[Field, ...] = (
    Field("run_id", "text"),
    Field("fleet", "text"),
    Field("supernet", "text"),
    Field("bundle_sha256", "text"),
    Field("space", "text"),
    Field("space_options", "text"),
    Field("device", "text"),
    Field("device_model", "text"),
    Field("runtime", "text"),
    Field("task_id", "text"),
    Field("attempt", "integer"),
    Field("stored_unix_s", "number"),
    Field("purpose", "text"),
    Field("baseline", "text"),
    Field("target_ms", "number"),
    Field("target", "text"),
    Field("fingerprint", "text"),
    Field("architecture", "text"),
    Field("predicted_ms", "number"),
    Field("predicted_std_ms", "number"),
    Field("predicted_accuracy", "number"),
    Field("asked_half_width_percent", "number"),
    Field("asked_sessions", "integer"),
    *(field for field in _OF_MEASUREMENT if field.name not in _LAST),
    *(field for suffix in _SUFFIXES for field in _message_fields(Conditions, f"_{suffix}")),
    *(field for field in _OF_MEASUREMENT if field.name in _LAST),
)


def exported_rows(
    store: MeasurementStore, runs: Sequence[str] = (), devices: Sequence[str] = ()
) -> Iterator[dict[str, Value]]:
    """Yield the measurements of the given runs and devices, or of all, in order of arrival.

    A row has a value for every one of `FIELDS`; failed measurements are left out. `UsageError` where a run or device is
    not there.
    """
    chosen = [store.run(run_id) for run_id in runs] if runs else store.runs()
    settings = {
        (run.run_id, record.device, record.setting.label): record
        for run in chosen
        for record in store.devices(run.run_id)
    }
    known = sorted({device for _, device, _ in settings})
    for device in devices:
        if device not in known:
            near = did_you_mean(device, known)
            raise UsageError(
                f"no device {device!r} took part in these runs{near} there are {', '.join(known) or 'none'}"
            )
    by_id = {run.run_id: run for run in chosen}
    for found in store.measurements(list(by_id), devices):
        task = found.task
        yield _row(by_id[task.run_id], settings.get((task.run_id, task.device, task.setting_label)), found)
    for run in chosen:
        for baseline in store.baselines.of_run(run.run_id):
            if not devices or baseline.device in devices:
                record = settings.get((run.run_id, baseline.device, baseline.setting_label))
                yield from _baseline_rows(run, record, baseline)


def _row(run: RunRecord, device: DeviceRecord | None, found: OutcomeRecord) -> dict[str, Value]:
    task, measurement = found.task, found.outcome
    assert isinstance(measurement, Measurement)
    row: dict[str, Any] = {
        **_of_run(run, device),
        "device": task.device,
        "runtime": task.setting_label,
        "baseline": None,
        "task_id": task.task_id,
        "attempt": found.key.attempt,
        "stored_unix_s": found.stored_unix_s,
        "fingerprint": task.architecture.fingerprint,
        "architecture": task.architecture.model_dump_json(),
    }
    for name in _OF_TASK:
        row[name] = getattr(task, name)
    row["target"] = task.target or None
    return row | _of_measurement(measurement)


def _baseline_rows(run: RunRecord, device: DeviceRecord | None, baseline: BaselineRecord) -> Iterator[dict[str, Value]]:
    """Yield the measurements of a baseline; one that is a model file has no architecture."""
    plan = run.settings.get("plan")
    named = plan.get("baselines", ()) if isinstance(plan, dict) else ()
    fields = next((each.get("architecture") for each in named if each.get("name") == baseline.baseline), None)
    architecture = Architecture.model_validate(fields) if fields else None
    for number, measurement in enumerate(baseline.measurements, 1):
        row: dict[str, Any] = {
            **_of_run(run, device),
            "device": baseline.device,
            "runtime": baseline.setting_label,
            "task_id": f"{run.run_id}.{baseline.baseline}",
            "attempt": number,
            "stored_unix_s": measurement.finished_unix_s,
            "baseline": baseline.baseline,
            "fingerprint": architecture.fingerprint if architecture else None,
            "architecture": architecture.model_dump_json() if architecture else None,
        }
        row |= dict.fromkeys(_OF_TASK) | {
            "purpose": "baseline",
            "predicted_accuracy": baseline.predicted_accuracy,
        }
        yield row | _of_measurement(measurement)


def _of_run(run: RunRecord, device: DeviceRecord | None) -> dict[str, Any]:
    return {
        "run_id": run.run_id,
        "fleet": run.fleet,
        "supernet": run.supernet,
        "bundle_sha256": run.bundle_sha256,
        "space": run.settings.get("design_space"),
        "space_options": json.dumps(run.settings.get("space_options", {})),
        "device_model": device.info.profile.model if device is not None else None,
    }


def _of_measurement(measurement: Measurement) -> dict[str, Any]:
    row: dict[str, Any] = {field.name: getattr(measurement, field.name) for field in _OF_MEASUREMENT}
    row["percentiles"] = to_json(measurement.percentiles).decode() if measurement.percentiles else None
    row["layers"] = json.dumps([layer.model_dump() for layer in measurement.layers])
    for suffix in _SUFFIXES:
        for name in _CONDITIONS:
            row[f"{name}_{suffix}"] = getattr(getattr(measurement, suffix), name)
    return row
