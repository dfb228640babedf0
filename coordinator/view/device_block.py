"""One device setting on the screen, in five degrees of detail."""

from __future__ import annotations

from enum import Enum

from rich.segment import Segment

from fleetnas.coordinator.records.snapshot import DeviceSnapshot
from fleetnas.coordinator.view import wording
from fleetnas.coordinator.view.device_line import (
    STATE_STYLES,
    detail_style,
    device_line,
    doing,
    has_room_for_work,
    measured,
    quality_style,
)
from fleetnas.coordinator.view.strip import (
    BOLD,
    DIM,
    FAILED_TEXT,
    PLAIN,
    WARN,
    Strip,
    bar,
    boxed,
    justified,
    padded,
    strip_width,
)
from fleetnas.coordinator.view.target_cells import inline_targets, table_height, table_width, target_table

#: Cells of the facts beside the table of targets in a wide panel, and of the gap between both.
_FACTS_CELLS, _FACTS_GAP = 72, 3
#: Lines of a panel's facts without its baselines.
_FACTS = 4


class Detail(Enum):
    """Detail in which a device is shown; the values are the cells that it needs across."""

    WIDE = 190
    """A panel with the facts beside the table of targets, where neither loses a word."""
    PANEL = 70
    SECTION = 48
    COMPACT = 40
    LINE = 60

    def height(self, device: DeviceSnapshot) -> int:
        """Return the number of lines that a device takes."""
        if self in (Detail.LINE, Detail.COMPACT):
            return 1 if self is Detail.LINE else 2
        table, facts = table_height(device), _FACTS + bool(device.baselines)
        if self is Detail.SECTION:
            return table + 1
        return 2 + (max(table, facts) if self is Detail.WIDE else table + facts)


def fits_beside(device: DeviceSnapshot, width: int) -> bool:
    """Whether the facts of a device and the table of its targets fit beside each other in a panel."""
    room = width - 4 - _FACTS_CELLS - _FACTS_GAP
    return table_width(device) <= room and all(
        strip_width(start) + strip_width(end) < _FACTS_CELLS for start, end in _facts(device)
    )


def device_block(device: DeviceSnapshot, detail: Detail, width: int, height: int, names: int) -> list[Strip]:
    """Lay out a device in `height` lines of `width` cells; names have `names` cells where they form a column."""
    if detail is Detail.LINE:
        return [device_line(device, width, names)]
    if detail is Detail.COMPACT:
        return [device_line(device, width, names), padded(inline_targets(device, width), width)]
    if detail is Detail.SECTION:
        work = has_room_for_work(device, width, names)
        table = target_table(device, width - 2, "" if work else doing(device), detail_style(device))
        line = device_line(device, width, names, met=False, work=work)
        return [line, *([Segment("  "), *strip] for strip in table)]
    return _panel(device, width, height, wide=detail is Detail.WIDE)


def _panel(device: DeviceSnapshot, width: int, height: int, *, wide: bool) -> list[Strip]:
    inner = width - 4
    title = [Segment(wording.printable(device.device), BOLD), Segment(f"  {wording.printable(device.setting_label)}")]
    if device.tags:
        title.append(Segment(f"  {' '.join(map(wording.printable, device.tags))}", DIM))
    edge = FAILED_TEXT if device.state == "failed" else DIM
    cells = _FACTS_CELLS if wide else inner
    facts = [justified(start, end, cells) for start, end in _facts(device)]
    if not wide:
        return boxed(title, [*facts, *target_table(device, inner)], width, height, edge)
    table = target_table(device, inner - _FACTS_CELLS - _FACTS_GAP)
    facts += [[] for _ in range(len(table) - len(facts))]
    table += [[] for _ in range(len(facts) - len(table))]
    body = [[*padded(fact, cells), Segment(" " * _FACTS_GAP), *row] for fact, row in zip(facts, table, strict=True)]
    return boxed(title, body, width, height, edge)


def _facts(device: DeviceSnapshot) -> list[tuple[Strip, Strip]]:
    """Return everything but the targets: one line each, as its beginning and its end."""
    quality, error = wording.data_quality(device.quality), wording.predictor_error(device.predictor_error)
    facts: list[tuple[Strip, Strip]] = [
        (_state(device), _conditions(device)),
        (_budget(device), _failures(device)),
        ([Segment("data quality     ", DIM), Segment(quality, quality_style(device))], []),
        ([Segment("predictor error  ", DIM), Segment(error)], []),
    ]
    if device.baselines:
        facts.append(([Segment("baselines        ", DIM), Segment(wording.baselines(device.baselines))], []))
    return facts


def _state(device: DeviceSnapshot) -> Strip:
    strip = [Segment(f"{wording.state_mark(device.state)} {device.state}", STATE_STYLES[device.state])]
    if device.state_detail:
        strip.append(Segment(f"  {wording.printable(device.state_detail)}", detail_style(device)))
    # The agent reports nothing between the beginning and the end of a short measurement.
    if device.progress:
        strip += [Segment("  "), *bar(device.progress, 12), Segment(f" {wording.percent(device.progress)}")]
    return strip


def _conditions(device: DeviceSnapshot) -> Strip:
    temperature = "temperature unknown" if device.temperature_c is None else f"{device.temperature_c:.0f} °C"
    strip = [Segment(temperature, DIM if device.temperature_c is None else PLAIN)]
    return [Segment("THROTTLED ", WARN), *strip] if device.throttled else strip


def _budget(device: DeviceSnapshot) -> Strip:
    strip = [Segment("measurements     ", DIM)]
    if device.budget > 0:
        strip += [*bar(device.measurements / device.budget, 20), Segment(" ")]
    return [*strip, Segment(measured(device))]


def _failures(device: DeviceSnapshot) -> Strip:
    return [Segment(wording.count_of(device.failures, "failure"), WARN)] if device.failures else []
