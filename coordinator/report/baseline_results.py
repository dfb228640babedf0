"""Converts the baselines of a device setting to the models of `results.json`."""

from __future__ import annotations

from dataclasses import asdict

from fleetnas.coordinator.records.baselines import BaselineRecord
from fleetnas.coordinator.records.comparisons import comparisons
from fleetnas.coordinator.records.outcome import DeviceOutcome
from fleetnas.coordinator.report.results import BaselineResult, ComparisonResult


def baseline_results(device: DeviceOutcome) -> tuple[BaselineResult, ...]:
    """Convert the baselines of a device setting, each compared with every target that is met there."""
    return tuple(_result(device, baseline) for baseline in device.baselines)


def _result(device: DeviceOutcome, baseline: BaselineRecord) -> BaselineResult:
    measured = baseline.measurement
    return BaselineResult(
        name=baseline.baseline,
        latency_ms=measured.median_ms if measured else None,
        half_width_percent=measured.half_width_percent if measured else None,
        p90_ms=measured.p90_ms if measured else None,
        quality=measured.quality if measured else None,
        undisturbed_ms=measured.undisturbed_ms if measured else None,
        measurements=len(baseline.measurements),
        memory_bytes=baseline.memory_bytes,
        model_bytes=measured.model_bytes if measured else None,
        sha256=measured.model_sha256 if measured else None,
        predicted_accuracy=baseline.predicted_accuracy,
        accuracy=baseline.accuracy,
        accuracy_images=baseline.accuracy_images,
        reason=baseline.reason,
        comparisons=tuple(
            ComparisonResult(**{**asdict(each), "subnet": each.subnet or None})
            for each in comparisons(device, baseline)
        ),
    )
