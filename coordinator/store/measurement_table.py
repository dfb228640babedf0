"""`measurements.csv`: one row per stored measurement, written and read; its columns are in `docs/results.md`."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from pydantic_core import to_json

from fleetnas.coordinator.records.budget import Purpose
from fleetnas.coordinator.records.outcome import DeviceOutcome, TakenMeasurement
from fleetnas.device_profiles.text_files import open_text
from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.fleet_protocol.errors import StoreError
from fleetnas.fleet_protocol.messages import Conditions, Measurement

_KEYS = ("device", "runtime", "task_id", "attempt", "counted", "purpose", "target_ms", "target")
_ARCHITECTURE = ("fingerprint", "architecture")
_PREDICTIONS = ("predicted_ms", "predicted_std_ms", "predicted_accuracy")
_CONDITIONS = tuple(Conditions.model_fields)
_LISTS = ("levels_ms", "session_medians_ms", "block_medians_ms", "times_us")
#: Left out: `layers` of a winner are in results.json.
_NO_SCALARS = ("before", "after", "percentiles", "layers", *_LISTS)
_SCALARS = tuple(name for name in Measurement.model_fields if name not in _NO_SCALARS)
_PURPOSE: TypeAdapter[Purpose] = TypeAdapter(Purpose)
#: Every column, in order; the long ones are last.
COLUMNS = (
    *_KEYS,
    *_ARCHITECTURE,
    *_PREDICTIONS,
    *_SCALARS,
    "percentiles",
    *(f"{name}_before" for name in _CONDITIONS),
    *(f"{name}_after" for name in _CONDITIONS),
    *_LISTS,
)
#: Characters at which a spreadsheet takes a text for a formula; it takes the wide forms for the narrow ones.
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
_ESCAPE = "'"


def measurements_csv(devices: Iterable[DeviceOutcome]) -> str:
    """Return the whole table, device after device, each in the order in which its measurements were stored."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for device in devices:
        for row in device.rows:
            writer.writerow(_cells(device, row))
    return text.getvalue()


def _cells(device: DeviceOutcome, row: TakenMeasurement) -> dict[str, str]:
    measurement = row.measurement
    cells: dict[str, Any] = {
        "device": device.device,
        "runtime": device.setting.label,
        "fingerprint": row.architecture.fingerprint,
        "architecture": row.architecture.model_dump_json(),
    }
    for name in (*_KEYS[2:], *_PREDICTIONS):
        cells[name] = getattr(row, name)
    for name in _SCALARS:
        cells[name] = getattr(measurement, name)
    for suffix, conditions in (("before", measurement.before), ("after", measurement.after)):
        for name in _CONDITIONS:
            cells[f"{name}_{suffix}"] = getattr(conditions, name)
    cells["percentiles"] = to_json(measurement.percentiles).decode() if measurement.percentiles else None
    for name in _LISTS:
        cells[name] = " ".join(repr(value) for value in getattr(measurement, name))
    return {name: csv_cell(value) for name, value in cells.items()}


def csv_cell(value: Any) -> str:
    """Return a single value as text; None is empty. Numbers are read back exactly, texts with `plain_cell`."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value)
    text = str(value)
    return _ESCAPE + text if text.startswith((*_FORMULA_STARTS, _ESCAPE)) else text


def plain_cell(cell: str) -> str:
    """Return the text of a cell that `csv_cell` wrote."""
    return cell.removeprefix(_ESCAPE)


def read_measurements(path: Path) -> dict[tuple[str, str], list[TakenMeasurement]]:
    """Read the rows of each device and runtime label; `StoreError` where the file is no table of measurements."""
    table: dict[tuple[str, str], list[TakenMeasurement]] = {}
    with open_text(path) as file:
        reader = csv.DictReader(file, restval="")
        try:
            if reader.fieldnames is None or tuple(reader.fieldnames) != COLUMNS:
                raise StoreError(f"{path} has other columns than this version writes; write it again from the run")
            for row in reader:
                cells = {name: plain_cell(cell) for name, cell in row.items() if name is not None}
                table.setdefault((cells["device"], cells["runtime"]), []).append(_row(cells))
        except (ValueError, csv.Error) as error:
            raise StoreError(
                f"line {reader.line_num} of {path} is not a measurement: {error}; write it again from the run"
            ) from error
    return table


def _row(cells: Mapping[str, str]) -> TakenMeasurement:
    def conditions(suffix: str) -> dict[str, str | None]:
        return {name: cells[f"{name}_{suffix}"] or None for name in _CONDITIONS}

    fields: dict[str, Any] = {name: cells[name] or None for name in _SCALARS}
    fields |= {name: tuple(float(value) for value in cells[name].split()) for name in _LISTS}
    fields["percentiles"] = json.loads(cells["percentiles"] or "[]")
    fields |= {"before": conditions("before"), "after": conditions("after")}
    measurement = Measurement.model_validate(fields)
    predicted_ms, std_ms, accuracy, target_ms = (
        float(cells[name]) if cells[name] else None for name in (*_PREDICTIONS, "target_ms")
    )
    return TakenMeasurement(
        task_id=cells["task_id"],
        attempt=int(cells["attempt"]),
        purpose=_PURPOSE.validate_python(cells["purpose"]),
        architecture=Architecture.model_validate_json(cells["architecture"]),
        measurement=measurement,
        predicted_ms=predicted_ms,
        predicted_std_ms=std_ms,
        predicted_accuracy=accuracy,
        target_ms=target_ms,
        target=cells["target"],
        counted=cells["counted"] == "true",
    )
