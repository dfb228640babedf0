"""A run's parameters and metrics under flat names, as experiment trackers take them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fleetnas.coordinator.report.results import DeviceResult, Results, TargetResult
from fleetnas.coordinator.report.target_names import name_of

#: Fields of a target that are metrics.
_OF_TARGET = (
    "verified_ms",
    "typical_ms",
    "predicted_ms",
    "measured_ms",
    "accuracy",
    "selection_accuracy",
    "predicted_accuracy",
    "energy_mj",
    "macs",
    "parameters",
    "peak_activation_bytes",
    "model_bytes",
)


@dataclass(frozen=True)
class Metric:
    """One value of a metric."""

    name: str
    value: float
    step: int = 0


def parameters_of(results: Results) -> dict[str, str]:
    """Return what a run was asked for and made with, as texts."""
    supernet = results.supernet
    return {
        "strategy": results.strategy,
        "budget": str(results.budget),
        "rerank": str(results.rerank),
        **{f"bound.{name}": f"{value:g}" for name, value in results.bounds.items()},
        "supernet": supernet.name,
        "supernet_sha256": supernet.sha256,
        "design_space": supernet.design_space,
        "dataset": supernet.dataset or "",
        "device_settings": str(len(results.fleet)),
        **{f"version.{name}": version for name, version in results.versions.items()},
    }


def metrics_of(results: Results) -> list[Metric]:
    """Return the totals, and each device setting's metrics under `DEVICE/SETTING/`."""
    found = [Metric("targets_met", results.targets_met), Metric("targets_asked", results.targets_asked)]
    if results.finished_at is not None:
        found.append(Metric("elapsed_s", (results.finished_at - results.started_at).total_seconds()))
    for device in results.fleet:
        found.extend(_of_device(device))
    return found


def files_of(results: Results) -> list[str]:
    """Return the models of a run, relative to its folder; other models there are of other runs."""
    return [target.model for device in results.fleet for target in device.targets if target.model is not None]


def _of_device(device: DeviceResult) -> Iterator[Metric]:
    yield Metric(f"{device.label}/measurements", device.measurements)
    yield Metric(f"{device.label}/failed_measurements", device.failed_measurements)
    yield Metric(f"{device.label}/slowed_measurements", device.quality.slowed)
    for point in device.learning:
        yield Metric(f"{device.label}/predictor_error_percent", point.mape_percent, point.measurements)
    for target in device.targets:
        yield from _of_target(f"{device.label}/{_plain(name_of(target))}", target)


def _of_target(prefix: str, target: TargetResult) -> Iterator[Metric]:
    yield Metric(f"{prefix}/met", float(target.met))
    for name in _OF_TARGET:
        value = getattr(target, name)
        if value is not None:
            yield Metric(f"{prefix}/{name}", float(value))


def _plain(name: str) -> str:
    """Return a name of letters, digits and `_.-` alone, which every tracker takes."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "_.-") else "_" for c in name.replace(" ", ""))
