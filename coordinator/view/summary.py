"""Summary of a run: the tables that stay on the terminal after a search."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.segment import Segments
from rich.table import Table
from rich.text import Text

from fleetnas.coordinator.records.accuracy_order import accuracy_warnings
from fleetnas.coordinator.records.outcome import CampaignOutcome, DeviceOutcome, TargetOutcome
from fleetnas.coordinator.records.statuses import SettingStatus
from fleetnas.coordinator.records.totals import target_totals
from fleetnas.coordinator.view import wording
from fleetnas.coordinator.view.baseline_table import baseline_table
from fleetnas.coordinator.view.strip import BAD, BOLD, DIM, FAILED, FAILED_TEXT, GOOD, PLAIN, WARN

#: How the latencies of one row differ; `measured` of a disturbed device may be well beyond `verified`.
LEGEND = (
    "predicted: without its own measurements   measured: when first tried",
    "verified: the file that ships   typical: at the run's median slow-down",
)

_STATUS_STYLES = {SettingStatus.FAILED: FAILED, SettingStatus.LOST: BAD}
#: Cells of the columns of a table of targets, with a few words in the last.
_LEAST_WIDTH = 60


def print_summary(console: Console, outcome: CampaignOutcome, remarks: Sequence[str] = ()) -> None:
    """Print the summary, with `remarks` before its last line, the verdict.

    A terminal too narrow for its tables breaks their lines, and no column is lost.
    """
    wide = console.options.update(width=max(console.width, _LEAST_WIDTH))
    console.print(Segments(console.render(Group(*_parts(outcome)), wide)), crop=False, end="")
    for remark in remarks:
        console.print(remark, markup=False, highlight=False, soft_wrap=True)
    console.print(_verdict(outcome), soft_wrap=True)


def summary(outcome: CampaignOutcome) -> RenderableType:
    """Lay out every device setting with its data's quality, every target with its verified latency and accuracy."""
    return Group(*_parts(outcome), _verdict(outcome))


def _verdict(outcome: CampaignOutcome) -> Text:
    totals = target_totals(outcome.devices)
    style = GOOD if totals.met and totals.met == totals.asked else FAILED_TEXT if not totals.met else WARN
    return Text(f"{wording.targets_met(totals)} by a fresh re-measurement", style=style)


def _parts(outcome: CampaignOutcome) -> list[RenderableType]:
    parts: list[RenderableType] = []
    for device in outcome.devices:
        parts.append(_heading(device, interrupted=outcome.interrupted))
        quality = device.quality
        parts.append(
            Text(f"  data quality: {wording.data_quality(quality)}", style=WARN if quality.often_slowed else PLAIN)
        )
        if device.targets:
            parts.append(_table(device))
        if device.baselines:
            parts.append(baseline_table(device))
        remark = wording.targets_remark(
            len(device.targets), device.targets_asked, device.targets_note, device.status is not SettingStatus.RUNNING
        )
        if remark:
            parts.append(Text(f"  {remark}"))
    if any(device.targets for device in outcome.devices):
        parts += [Text(line, style=DIM) for line in LEGEND]
    if outcome.bounds.given():
        parts.append(Text(f"every winner has {outcome.bounds}"))
    warning = wording.slowed_warning((device.label, device.quality) for device in outcome.devices)
    if warning:
        parts.append(Text(f"{warning}; {wording.SLOWED_ADVICE}", style=WARN))
    parts += [Text(line, style=WARN) for line in wording.first_warnings(accuracy_warnings(outcome))]
    statuses = [device.status for device in outcome.devices]
    if any(status is not SettingStatus.FINISHED for status in statuses):
        counts = wording.status_counts(statuses, interrupted=outcome.interrupted)
        parts.append(Text(f"{wording.count_of(len(statuses), 'device setting')}: {counts}"))
    return parts


def _heading(device: DeviceOutcome, *, interrupted: bool) -> Text:
    style = _STATUS_STYLES.get(device.status, PLAIN)
    reason = f" ({wording.printable(device.reason)})" if device.reason else ""
    failed = device.failed_measurements
    failures = f", {wording.count_of(failed, 'failed measurement')}" if failed else ""
    return Text.assemble(
        (device.label, BOLD),
        ": ",
        (wording.setting_status(device.status, interrupted=interrupted), style),
        f"{reason}, {wording.count_of(device.measurements, 'measurement')}{failures}, "
        f"predictor error {wording.predictor_error(device.predictor)}",
    )


def _table(device: DeviceOutcome) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in ("target ms", "predicted", "measured", "verified", "accuracy"):
        table.add_column(heading, justify="right", no_wrap=True, width=len("target ms"))
    table.add_column("", overflow="fold", min_width=len("✓ met"))
    for target in device.targets:
        table.add_row(*_cells(target))
    return table


def _cells(target: TargetOutcome) -> list[Text]:
    remarks = wording.remarks(target.verified_ms, target.typical_ms, target.note)
    shown = wording.target_value(target.target, target.value, target.value_high)
    if shown:
        remarks.insert(0, shown)
    if target.selection is not None:
        remarks.append(f"{wording.accuracy(target.selection.accuracy)} of the selection images")
    if target.met:
        result = Text("; ".join((f"✓ {wording.met_word(target.target_ms, target.target)}", *remarks)), style=GOOD)
    elif target.open:
        result = Text(f"· {wording.printable(target.reason)}")
    else:
        result = Text("; ".join((f"✗ {wording.printable(target.reason) or 'not met'}", *remarks)), style=BAD)
    if target.subnet:
        result = Text.assemble(f"{target.subnet} ", result)
    accuracy = wording.accuracy(target.accuracy)
    if target.accuracy is None and target.predicted_accuracy is not None:
        accuracy = f"~{wording.accuracy(target.predicted_accuracy)}"
    latencies = (target.predicted_ms, target.measured_ms, target.verified_ms)
    return [
        Text(wording.target(target.target_ms, target.target)),
        *(Text(wording.latency(ms)) for ms in latencies),
        Text(accuracy),
        result,
    ]
