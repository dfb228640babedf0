"""Baselines in words and as a table: what the user's own networks take, and how winners compare."""

from __future__ import annotations

from typing import Protocol

from rich.table import Table
from rich.text import Text

from fleetnas.coordinator.records.baselines import AccuracyBasis, BaselineRecord, SpeedBasis
from fleetnas.coordinator.records.comparisons import comparisons
from fleetnas.coordinator.records.outcome import DeviceOutcome
from fleetnas.coordinator.records.targets import target_label
from fleetnas.coordinator.view import wording
from fleetnas.coordinator.view.speedup import speedup_words
from fleetnas.coordinator.view.strip import GOOD, WARN


class _Compared(Protocol):
    """A comparison, of a run or of its results."""

    @property
    def speedup(self) -> float: ...
    @property
    def speedup_low(self) -> float | None: ...
    @property
    def speedup_high(self) -> float | None: ...
    @property
    def speed_basis(self) -> SpeedBasis: ...
    @property
    def accuracy_points(self) -> float | None: ...
    @property
    def accuracy_basis(self) -> AccuracyBasis | None: ...


def comparison_words(compared: _Compared) -> str:
    """Say how a winner compares with a baseline, such as `2.1x faster at -0.3 points`."""
    if compared.speed_basis == "same-file":
        return "the same network"
    text = speedup_words(compared.speedup, compared.speedup_low, compared.speedup_high)
    text += {"undisturbed": " (undisturbed)", "slowed": " (the device was slowed)"}.get(compared.speed_basis, "")
    if compared.accuracy_points is not None:
        remark = {"predicted": " (predicted)", "given": " (given)"}.get(compared.accuracy_basis or "", "")
        text += f" at {compared.accuracy_points:+.1f} points{remark}"
    return text


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
