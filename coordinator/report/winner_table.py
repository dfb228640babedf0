"""The networks of the winners as rows of the page: cost, percentiles of the latency, architecture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fleetnas.coordinator.records.outcome import TakenMeasurement
from fleetnas.coordinator.report.layer_table import LayerTable, layer_table
from fleetnas.coordinator.report.results import DeviceResult, TargetResult
from fleetnas.coordinator.report.target_names import name_of
from fleetnas.coordinator.view.wording import count_of
from fleetnas.fleet_protocol.architecture import Architecture

#: Raw samples below which a 95th percentile says nothing.
_FEWEST_SAMPLES = 20


@dataclass(frozen=True)
class Percentiles:
    """Percentiles of the raw samples of a verification, milliseconds, as it ran."""

    p50_ms: float
    p90_ms: float
    p95_ms: float
    samples: int


@dataclass(frozen=True)
class WinnerRow:
    """A winner's network."""

    name: str
    target: TargetResult
    percentiles: Percentiles | None
    """None where too few samples were kept."""
    architecture: str
    layers: LayerTable | None
    """None where the file was not profiled."""


def winner_rows(device: DeviceResult, rows: Sequence[TakenMeasurement]) -> list[WinnerRow]:
    """Return a row for each target of a device setting that has a verified network."""
    return [
        WinnerRow(
            name_of(target),
            target,
            _percentiles(target, rows),
            architecture_text(target.architecture),
            layer_table(target.layers),
        )
        for target in device.targets
        if target.architecture is not None and target.verified_ms is not None
    ]


def architecture_text(architecture: Architecture) -> str:
    """Return an architecture on one line: resolution, then for each list its values."""
    found = architecture.model_dump(mode="json", exclude_none=True)
    parts = [f"{name} {_values(value)}" for name, value in found.items() if name != "r" and value not in ((), [])]
    return "; ".join([f"r {architecture.r}", *parts])


def _values(value: object) -> str:
    return " ".join(f"{each:g}" for each in value) if isinstance(value, list | tuple) else str(value)


def _percentiles(target: TargetResult, rows: Sequence[TakenMeasurement]) -> Percentiles | None:
    """Return the percentiles of the last verification of the target's file."""
    found = [
        row.measurement.times_us
        for row in rows
        if row.counted and row.purpose == "verification" and row.measurement.model_sha256 == target.sha256
    ]
    if not found or len(found[-1]) < _FEWEST_SAMPLES:
        return None
    p50, p90, p95 = (float(value) / 1000 for value in np.percentile(found[-1], (50, 90, 95)))
    return Percentiles(p50, p90, p95, len(found[-1]))


def quantity(number: float | None) -> str:
    """Return a count with three digits and its unit, as `4.12 M`; a dash where it is not known."""
    if number is None:
        return "–"
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:g}"


def size(number: float | None) -> str:
    """Return bytes with three digits, as `1.06 MB`; a dash where they are not known."""
    found = quantity(number)
    return found if number is None else f"{found}B" if " " in found else f"{found} B"


def samples_text(rows: Sequence[WinnerRow]) -> str:
    """Return how many samples the percentiles rest on; empty where there are none."""
    counts = {row.percentiles.samples for row in rows if row.percentiles is not None}
    if not counts:
        return ""
    return f"percentiles of {count_of(min(counts), 'sample')}" + (" and more" if len(counts) > 1 else "")
