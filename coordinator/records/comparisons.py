"""Compare the winners of a device setting with its baselines."""

from __future__ import annotations

from fleetnas.coordinator.records.baselines import AccuracyBasis, BaselineRecord, Comparison, SpeedBasis
from fleetnas.coordinator.records.outcome import DeviceOutcome, TargetOutcome
from fleetnas.fleet_protocol.messages import Measurement


def comparisons(device: DeviceOutcome, baseline: BaselineRecord) -> tuple[Comparison, ...]:
    """Compare every target that is met with a baseline of the same device setting; none where that has no latency."""
    measured = baseline.measurement
    if measured is None:
        return ()
    return tuple(_compared(device, target, baseline, measured) for target in device.targets if target.met)


def _compared(
    device: DeviceOutcome, target: TargetOutcome, baseline: BaselineRecord, measured: Measurement
) -> Comparison:
    points, basis = _accuracy_points(target, baseline)
    if target.sha256 == measured.model_sha256:
        # Two measurements of one file differ by their noise alone.
        return Comparison(target.target_ms, target.subnet, 1.0, "same-file", points, basis, target=target.target)
    winner = _verification(device, target)
    assert target.verified_ms is not None  # of a target that is met
    speedup, speed_basis, (low, high) = _speedup(target.verified_ms, winner, measured)
    return Comparison(
        target.target_ms, target.subnet, speedup, speed_basis, points, basis, low, high, target=target.target
    )


def speedup_interval(speedup: float, fast_percent: float, slow_percent: float) -> tuple[float, float | None]:
    """Return the 95 % interval of a speed-up, at least; its upper end is None where it has none.

    The 95 % half-widths of the latency that divides, `fast_percent`, and of the other one, are in percent.
    """
    low = speedup * max(0.0, 1 - slow_percent / 100) / (1 + fast_percent / 100)
    return low, speedup * (1 + slow_percent / 100) / (1 - fast_percent / 100) if fast_percent < 100 else None


def _speedup(
    verified_ms: float, winner: Measurement | None, baseline: Measurement
) -> tuple[float, SpeedBasis, tuple[float, float | None]]:
    """Return a speed-up, what it rests on, and its interval."""
    slowed = "slowed" in (baseline.quality, winner.quality if winner is not None else "")
    if slowed and winner is not None and winner.undisturbed_ms is not None and baseline.undisturbed_ms is not None:
        ratio = baseline.undisturbed_ms / winner.undisturbed_ms
        own, other = winner.undisturbed_half_width_percent, baseline.undisturbed_half_width_percent
        return ratio, "undisturbed", speedup_interval(ratio, own, other)
    own = winner.half_width_percent if winner is not None else 0.0
    ratio = baseline.median_ms / verified_ms
    return ratio, "slowed" if slowed else "as-ran", speedup_interval(ratio, own, baseline.half_width_percent)


def _verification(device: DeviceOutcome, target: TargetOutcome) -> Measurement | None:
    """Return the re-measurement that decided a target; None where it cannot be told."""
    found = [
        row.measurement
        for row in device.rows
        if row.purpose == "verification"
        and row.measurement.model_sha256 == target.sha256
        and row.measurement.median_ms == target.verified_ms
    ]
    return found[-1] if found else None


def _accuracy_points(target: TargetOutcome, baseline: BaselineRecord) -> tuple[float | None, AccuracyBasis | None]:
    """Compare accuracies of one kind; one that the user gave is compared with the best that is known of the winner."""
    if baseline.accuracy is not None and baseline.accuracy_images is None:
        own = target.accuracy if target.accuracy is not None else target.predicted_accuracy
        return _points(own, baseline.accuracy), "given" if own is not None else None
    if target.accuracy is not None and baseline.accuracy is not None:
        return _points(target.accuracy, baseline.accuracy), "evaluated"
    points = _points(target.predicted_accuracy, baseline.predicted_accuracy)
    return points, "predicted" if points is not None else None


def _points(winner: float | None, baseline: float | None) -> float | None:
    return None if winner is None or baseline is None else 100 * (winner - baseline)
