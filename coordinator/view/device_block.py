"""One device setting on the screen, in four degrees of detail."""

from __future__ import annotations

from enum import Enum

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style

from fleetnas.coordinator.records.snapshot import DeviceSnapshot, DeviceState, TargetSnapshot
from fleetnas.coordinator.records.totals import target_totals
from fleetnas.coordinator.view import wording
from fleetnas.coordinator.view.strip import (
    BAD,
    BOLD,
    DIM,
    FAILED,
    GOOD,
    PLAIN,
    WARN,
    Strip,
    bar,
    boxed,
    justified,
    left,
    padded,
    right,
    strip_width,
)

_STATE_STYLES: dict[DeviceState, Style] = {
    "offline": DIM,
    "fetching": GOOD,
    "measuring": GOOD,
    "waiting": PLAIN,
    "verifying": GOOD,
    "done": BOLD,
    "lost": BAD,
    "failed": FAILED,
    "idle": DIM,
}
#: From the first number of cells on, a table of targets has roomy columns; below the second, only the best latency.
_ROOMY, _THREE_LATENCIES = 66, 60
_STATE_CELLS, _LEAST_NAME = 12, 20
#: Digits of a given subnet's fingerprint where there is no room for all.
_SHORT_SUBNET = 6
_COMMON_PARTS = (("onnxruntime", "ort"), ("_cpu", ""), ("_fp32", ""), ("opt-", ""))


class Detail(Enum):
    """Detail in which a device is shown; the values are the cells that it needs across."""

    PANEL = 70
    SECTION = 48
    COMPACT = 40
    LINE = 60

    def height(self, device: DeviceSnapshot) -> int:
        """Return the number of lines that a device takes."""
        table = len(device.targets) + bool(_targets_remark(device))
        return {Detail.PANEL: table + 7, Detail.SECTION: table + 2, Detail.COMPACT: 2, Detail.LINE: 1}[self]


def device_block(device: DeviceSnapshot, detail: Detail, width: int, height: int) -> list[Strip]:
    """Lay out a device in `height` lines of `width` cells."""
    if detail is Detail.LINE:
        return [_line(device, width)]
    if detail is Detail.COMPACT:
        return [_line(device, width), padded(_inline_targets(device), width)]
    if detail is Detail.SECTION:
        table = _target_table(device, width - 2, remark=_detail(device))
        return [_line(device, width, with_targets=False), *([Segment("  "), *strip] for strip in table)]
    inner = width - 4
    title = [Segment(wording.printable(device.device), BOLD), Segment(f"  {wording.printable(device.setting_label)}")]
    if device.tags:
        title.append(Segment(f"  {' '.join(device.tags)}", DIM))
    body = [
        justified(_state(device), _conditions(device), inner),
        justified(_budget(device), _failures(device), inner),
        [Segment("data quality     ", DIM), Segment(wording.data_quality(device.quality), _quality_style(device))],
        [Segment("predictor error  ", DIM), Segment(wording.predictor_error(device.predictor_error))],
        *_target_table(device, inner),
    ]
    return boxed(title, body, width, height)


def _state(device: DeviceSnapshot) -> Strip:
    strip = [
        Segment(f"{wording.state_mark(device.state)} {device.state}", _STATE_STYLES[device.state]),
    ]
    if device.state_detail:
        strip.append(Segment(f"  {wording.printable(device.state_detail)}"))
    # The agent reports nothing between the beginning and the end of a short measurement.
    if device.progress:
        strip += [Segment("  "), *bar(device.progress, 12), Segment(f" {wording.percent(device.progress)}")]
    return strip


def _detail(device: DeviceSnapshot) -> str:
    """Return the words that a narrow view shows beside the state."""
    parts = (
        wording.printable(device.state_detail),
        "" if device.progress is None else wording.percent(device.progress),
    )
    return " ".join(part for part in parts if part)


def _conditions(device: DeviceSnapshot) -> Strip:
    temperature = "temperature unknown" if device.temperature_c is None else f"{device.temperature_c:.0f} °C"
    strip = [Segment(temperature, DIM if device.temperature_c is None else PLAIN)]
    return [Segment("THROTTLED ", WARN), *strip] if device.throttled else strip


def _budget(device: DeviceSnapshot) -> Strip:
    strip = [Segment("measurements     ", DIM)]
    if device.budget > 0:
        strip += [*bar(device.measurements / device.budget, 20), Segment(" ")]
    return [*strip, Segment(_count(device))]


def _count(device: DeviceSnapshot) -> str:
    return f"{device.measurements}/{device.budget}" if device.budget > 0 else str(device.measurements)


def _failures(device: DeviceSnapshot) -> Strip:
    return [Segment(wording.count_of(device.failures, "failure"), WARN)] if device.failures else []


def _quality_style(device: DeviceSnapshot) -> Style:
    return WARN if device.quality.often_slowed else PLAIN


def _targets_remark(device: DeviceSnapshot) -> str:
    return wording.targets_remark(len(device.targets), device.targets_asked, device.targets_note, device.ended)


def _line(device: DeviceSnapshot, width: int, with_targets: bool = True) -> Strip:
    """Lay out a device in one line; where it is narrow, the last columns are left out."""
    totals = target_totals([device])
    slowed = device.quality.slowed
    hot = device.throttled is True
    temperature = "" if device.temperature_c is None else f"{device.temperature_c:.0f}°C"
    columns: list[tuple[str, int, Style]] = [(_count(device), 7, PLAIN)]
    if with_targets:
        style = GOOD if totals.met and totals.met == totals.asked else PLAIN
        columns.append((f"{totals.met}/{totals.asked} met", 8, style))
    columns += [
        (f"{slowed} slowed" if slowed else "", 10, _quality_style(device)),
        (wording.predictor_error(device.predictor_error, short=True), 14, DIM),
        (f"{device.failures} fail" if device.failures else "", 8, WARN),
        (f"{temperature} hot" if hot else temperature, 9, WARN if hot else PLAIN),
    ]
    room = width - _STATE_CELLS - _LEAST_NAME
    kept: Strip = []
    for text, cells, style in columns:
        if cells > room:
            break
        kept.append(Segment(right(text, cells), style))
        room -= cells
    state = left(f"{wording.state_mark(device.state)} {device.state}", _STATE_CELLS)
    name = _name(device, width - _STATE_CELLS - strip_width(kept) - 1)
    detail = [Segment(f"  {_detail(device)}")] if with_targets else []
    return justified([Segment(state, _STATE_STYLES[device.state]), *name, *detail], kept, width)


def _name(device: DeviceSnapshot, width: int) -> Strip:
    """Lay out device and setting; where they do not fit, the label is abbreviated, then only its end is shown."""
    name, label = wording.printable(device.device), wording.printable(device.setting_label)
    room = width - cell_len(name) - 1
    if cell_len(label) > room:
        for common, short in _COMMON_PARTS:
            label = label.replace(common, short)
    if cell_len(label) > room:
        label = f"…{label[1 - room :]}" if room > 1 else ""
    return [Segment(name, BOLD), Segment(f" {label}" if label else "")]


def _best(target: TargetSnapshot) -> str:
    """Return the most reliable latency; `~` marks one that is only predicted, `?` one not yet verified."""
    if target.verified_ms is not None:
        return wording.latency(target.verified_ms)
    if target.measured_ms is not None:
        return f"?{wording.latency(target.measured_ms)}"
    return "–" if target.predicted_ms is None else f"~{wording.latency(target.predicted_ms)}"


def _inline_targets(device: DeviceSnapshot) -> Strip:
    if not device.targets:
        return [Segment(f"  {_targets_remark(device)}", DIM)]
    strip = [Segment("  ms ", DIM)]
    for target in device.targets:
        strip += [
            Segment(f" {target.subnet[:_SHORT_SUBNET] or wording.target(target.target_ms, target.target)}:", DIM),
            Segment(f"{_best(target)}{wording.target_mark(target)} ", _target_style(target)),
        ]
    return strip


def _target_style(target: TargetSnapshot) -> Style:
    return PLAIN if target.met is None else GOOD if target.met else BAD


def _target_table(device: DeviceSnapshot, width: int, remark: str = "") -> list[Strip]:
    """Lay out a line of headings, with `remark` behind them, and one per target, each `width` cells wide."""
    roomy, three = width >= _ROOMY, width >= _THREE_LATENCIES
    heads = ["target ms", "predicted", "measured", "verified", "accuracy"] if three else ["target ms", "best", "acc."]
    cells = (10, 10, 10, 10, 10) if roomy else (9, 10, 9, 9, 9) if three else (9, 8, 8)
    rest = max(0, width - sum(cells))
    head = "".join(right(text, size) for text, size in zip(heads, cells, strict=True))
    table: list[Strip] = [padded([Segment(head, DIM), Segment(left(f"  {remark}", rest))], width)]
    for target in device.targets:
        latencies = (
            [
                wording.latency(target.predicted_ms),
                wording.latency(target.measured_ms),
                wording.latency(target.verified_ms),
            ]
            if three
            else [_best(target)]
        )
        texts = [wording.target(target.target_ms, target.target), *latencies, wording.target_accuracy(target)]
        status = f"  {wording.target_mark(target)} {wording.target_status(target)}"
        row = [Segment(right(text, size)) for text, size in zip(texts, cells, strict=True)]
        table.append(padded([*row, Segment(left(status, rest), _target_style(target))], width))
    note = _targets_remark(device)
    if note:
        table.append(padded([Segment(f"  {note}", DIM)], width))
    return table
