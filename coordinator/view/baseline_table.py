"""Baselines in words and as a table: what the user's own networks take, and how winners compare."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from fleetnas.coordinator.records.baselines import AccuracyBasis, BaselineRecord, Comparison, SpeedBasis
from fleetnas.coordinator.records.comparisons import comparisons
from fleetnas.coordinator.records.outcome import DeviceOutcome
from fleetnas.coordinator.records.targets import target_label
from fleetnas.coordinator.view import wording
from fleetnas.coordinator.view.strip import GOOD, WARN

#: Latencies that differ by less are told as equal.
_EQUAL = 0.02
#: From this ratio on no decimals are shown.
_MANY = 10.0


def compared(speedup: float, accuracy_points: float | None, basis: AccuracyBasis | None, speed: SpeedBasis) -> str:
    """Say how a winner compares with a baseline, such as `2.1x faster at -0.3 points`."""
    if speed == "same-file":
        return "the same network"
    ratio = max(speedup, 1 / speedup)
    shown = f"{ratio:.0f}x" if ratio >= _MANY else f"{ratio:.1f}x" if ratio >= 1.1 else f"{ratio:.2f}x"
    text = "as fast" if ratio < 1 + _EQUAL else f"{shown} {'faster' if speedup > 1 else 'slower'}"
    text += {"undisturbed": " (undisturbed)", "slowed": " (the device was slowed)"}.get(speed, "")
    if accuracy_points is not None:
        remark = {"predicted": " (predicted)", "given": " (given)"}.get(basis or "", "")
        text += f" at {accuracy_points:+.1f} points{remark}"
    return text


def comparison_words(comparison: Comparison) -> str:
    """Say how a winner compares with a baseline."""
    return compared(comparison.speedup, comparison.accuracy_points, comparison.accuracy_basis, comparison.speed_basis)


def measured_cells(row: BaselineRecord) -> list[Text]:
    """Return the cells median, interval, p90, memory and remark of a baseline on one device setting."""
    measured = row.measurement
    if measured is None:
        reason = row.reason or "not measured yet"
        return [Text("-"), Text("-"), Text("-"), Text("-"), Text(wording.printable(reason), style=WARN)]
    remark = {"slowed": "the device was slowed", "noisy": "noisy"}.get(measured.quality, "")
    return [
        Text(wording.latency(measured.median_ms)),
        Text(wording.half_width(measured.half_width_percent)),
        Text(wording.latency(measured.p90_ms)),
        Text("-" if row.memory_bytes is None else f"{row.memory_bytes / 1e6:,.1f} MB"),
        Text(remark, style=WARN),
    ]


def baseline_table(device: DeviceOutcome) -> Table:
    """Lay out the baselines of a device setting, and every target that is met against each of them."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("  baseline", overflow="fold")
    for heading in ("ms", "accuracy"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("winners against it", overflow="fold")
    for row in device.baselines:
        measured = row.measurement
        if measured is None:
            reason = Text(wording.printable(row.reason) or "not measured yet", style=WARN)
            table.add_row(Text(f"  {wording.printable(row.baseline)}"), Text("-"), Text(_accuracy(row)), reason)
            continue
        words = [
            f"{target_label(each.target_ms, each.target) or each.subnet}: {comparison_words(each)}"
            for each in comparisons(device, row)
        ]
        table.add_row(
            Text(f"  {wording.printable(row.baseline)}"),
            Text(wording.latency(measured.median_ms)),
            Text(_accuracy(row)),
            Text("\n".join(words) or "no target is met", style=GOOD if words else WARN),
        )
    return table


def _accuracy(row: BaselineRecord) -> str:
    if row.accuracy is None and row.predicted_accuracy is not None:
        return f"~{wording.accuracy(row.predicted_accuracy)}"
    return wording.accuracy(row.accuracy)
