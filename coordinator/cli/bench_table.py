"""What `fleetnas bench` prints: a table per model file, or one JSON object."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fleetnas.coordinator.records.baselines import BaselineRecord
from fleetnas.coordinator.records.outcome import CampaignOutcome, DeviceOutcome
from fleetnas.coordinator.report.baseline_results import baseline_results
from fleetnas.coordinator.view import baseline_table, wording


def report_of(outcome: CampaignOutcome) -> dict[str, Any]:
    """Return a row per model file and device setting, as `results.json` has a baseline."""
    return {
        "rows": [
            {
                "device": device.device,
                "runtime": device.setting.label,
                **row.model_dump(exclude={"comparisons", "predicted_accuracy", "accuracy", "accuracy_images"}),
            }
            for device in outcome.devices
            for row in baseline_results(device)
        ]
    }


def print_bench(console: Console, outcome: CampaignOutcome) -> None:
    """Print a table per model file: the device settings that measured it, fastest first, then the others."""
    rows = [(device, row) for device in outcome.devices for row in device.baselines]
    for name in dict.fromkeys(row.baseline for _, row in rows):
        console.print(Text(wording.printable(name), style="bold"))
        console.print(_table([(device, row) for device, row in rows if row.baseline == name]))


def _table(rows: list[tuple[DeviceOutcome, BaselineRecord]]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("device setting", overflow="fold")
    for heading in ("median ms", "95 %", "p90 ms", "memory"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", overflow="fold")

    def latency(row: BaselineRecord) -> float:
        return row.measurement.median_ms if row.measurement is not None else float("inf")

    for device, row in sorted(rows, key=lambda found: (latency(found[1]), found[0].label)):
        table.add_row(Text(device.label), *baseline_table.measured_cells(row))
    return table
