"""The table that stays on the terminal after a campaign."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from coordinator.report.outcome import CampaignOutcome, DeviceOutcome, TargetOutcome
from coordinator.view import wording


def summary(outcome: CampaignOutcome) -> RenderableType:
    """Every device setting with its predictor's error, every target with its verified latency and accuracy."""
    parts: list[RenderableType] = []
    for device in outcome.devices:
        parts.append(Text.assemble((f"{device.device}/{device.setting.label}", "bold"), f": {_status(device)}"))
        if device.targets:
            parts.append(_table(device))
    if outcome.bounds.given():
        parts.append(Text(f"every winner has {outcome.bounds}"))
    met = sum(target.met for device in outcome.devices for target in device.targets)
    count = sum(len(device.targets) for device in outcome.devices)
    parts.append(Text(f"{met} of {wording.count_of(count, 'target')} met by a fresh re-measurement"))
    return Group(*parts)


def _table(device: DeviceOutcome) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in ("target ms", "predicted", "measured", "verified", "accuracy"):
        table.add_column(heading, justify="right", no_wrap=True, width=len("target ms"))
    table.add_column("", overflow="fold", min_width=len("✓ met"))
    for target in device.targets:
        table.add_row(*_cells(target))
    return table


def _cells(target: TargetOutcome) -> list[Text]:
    if target.met:
        result = Text("✓ met", style="cyan")
    else:
        result = Text(f"✗ {wording.printable(target.reason) or 'not met'}", style="bold magenta")
    accuracy = wording.accuracy(target.accuracy)
    if target.accuracy is None and target.predicted_accuracy is not None:
        accuracy = f"~{wording.accuracy(target.predicted_accuracy)}"
    latencies = (target.predicted_ms, target.measured_ms, target.verified_ms)
    return [
        Text(wording.target(target.target_ms)),
        *(Text(wording.latency(ms)) for ms in latencies),
        Text(accuracy),
        result,
    ]


def _status(device: DeviceOutcome) -> str:
    failures = f", {wording.count_of(len(device.failures), 'failure')}" if device.failures else ""
    reason = f" ({wording.printable(device.reason)})" if device.reason else ""
    return (
        f"{device.status}{reason}, {wording.count_of(device.measurements, 'measurement')}{failures}, "
        f"predictor error {wording.predictor_error(device.predictor)}"
    )
