"""One device setting in one line: its state, its counts, and the facts that matter most."""

from __future__ import annotations

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style

from fleetnas.coordinator.records.snapshot import DeviceSnapshot, DeviceState
from fleetnas.coordinator.records.totals import target_totals
from fleetnas.coordinator.view import wording
from fleetnas.coordinator.view.names import fitted_label
from fleetnas.coordinator.view.strip import (
    BAD,
    BOLD,
    DIM,
    FAILED,
    FAILED_TEXT,
    GOOD,
    PLAIN,
    WARN,
    Strip,
    left,
    padded,
    right,
    strip_width,
)

STATE_STYLES: dict[DeviceState, Style] = {
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
_DETAIL_STYLES: dict[DeviceState, Style] = {"failed": FAILED_TEXT, "lost": BAD}
#: States of which the reason comes before every other fact.
_EXPLAINED: frozenset[DeviceState] = frozenset(("failed", "lost", "offline", "idle", "waiting", "fetching"))
_STATE_CELLS, _COUNT_CELLS, _MET_CELLS = 12, 8, 9
#: Blanks before the first fact.
_FACTS_GAP = 2

_Fact = tuple[str, Style]


def device_line(device: DeviceSnapshot, width: int, names: int, *, met: bool = True, work: bool = True) -> Strip:
    """Lay out a device in one line with `names` cells for its name; facts that do not fit are left out.

    `met`: with the number of its targets that are met; `work`: with what it does.
    """
    # The blanks behind the state are not in its colour, which may be that of its background.
    state = f"{wording.state_mark(device.state)} {device.state}"
    blanks = " " * (_STATE_CELLS - cell_len(state))
    name, label = fitted_label(device, names)
    column = padded([Segment(name, BOLD), Segment(f" {label}" if label else "")], names)
    strip = [Segment(state, STATE_STYLES[device.state]), Segment(blanks), *column]
    strip.append(Segment(right(measured(device), _COUNT_CELLS)))
    if met:
        totals = target_totals([device])
        style = GOOD if totals.met and totals.met == totals.asked else PLAIN
        strip.append(Segment(right(f"{totals.met}/{totals.asked} met", _MET_CELLS), style))
    return padded([*strip, *_fitting(_facts(device, work), width - strip_width(strip))], width)


def has_room_for_work(device: DeviceSnapshot, width: int, names: int) -> bool:
    """Whether what a device does fits into its line, where that does not show its targets."""
    return cell_len(doing(device)) <= width - _STATE_CELLS - names - _COUNT_CELLS - _FACTS_GAP


def doing(device: DeviceSnapshot) -> str:
    """Return the words behind a device's state: what it does, or why it does nothing, and how far it is."""
    parts = (
        wording.printable(device.state_detail),
        "" if device.progress is None else wording.percent(device.progress),
    )
    return " ".join(part for part in parts if part)


def detail_style(device: DeviceSnapshot) -> Style:
    """Return the style of the words behind a device's state."""
    return _DETAIL_STYLES.get(device.state, PLAIN)


def quality_style(device: DeviceSnapshot) -> Style:
    """Return the style of what is said on the quality of a device's measurements."""
    return WARN if device.often_slowed else PLAIN


def measured(device: DeviceSnapshot) -> str:
    """Return the measurements of a device, as `23/40`."""
    return f"{device.measurements}/{device.budget}" if device.budget > 0 else str(device.measurements)


def _facts(device: DeviceSnapshot, with_work: bool) -> list[_Fact]:
    """Return the facts of a device, the most important first; empty texts are no facts."""
    work: _Fact = (doing(device), detail_style(device)) if with_work else ("", PLAIN)
    explained = device.state in _EXPLAINED
    quality, hot, board = device.quality, device.throttled is True, device.board
    slowed: _Fact = (f"{quality.slowed} slowed" if quality.slowed else "", quality_style(device))
    temperature = "" if device.temperature_c is None else f"{device.temperature_c:.0f}°C"
    slow = board is not None and board.slow
    return [
        work if explained else ("", PLAIN),
        slowed if device.often_slowed else ("", PLAIN),
        (wording.count_of(device.failures, "failure") if device.failures else "", WARN),
        (f"{temperature} hot".strip() if hot else "", WARN),
        (f"{board.speed:.2f}x slower than its class" if board is not None and slow else "", WARN),
        ("", PLAIN) if explained else work,
        (wording.predictor_error(device.predictor_error, short=True), DIM),
        ("", PLAIN) if device.often_slowed else slowed,
        ("" if hot else temperature, PLAIN),
        ("" if board is None or slow else f"class {wording.printable(board.class_name)}", DIM),
        (" ".join(map(wording.printable, device.tags)), DIM),
    ]


def _fitting(facts: list[_Fact], room: int) -> Strip:
    """Lay out facts behind two blanks; the first is cut where it is too long, others that are too long are left out."""
    strip: Strip = []
    room -= _FACTS_GAP
    for text, style in facts:
        if not text:
            continue
        between = ", " if strip else " " * _FACTS_GAP
        cells = cell_len(text) + (len(between) if strip else 0)
        if cells > room and strip:
            continue
        strip.append(Segment(between + (left(text, room) if cells > room else text), style))
        room -= cells
        if room <= 0:
            break
    return strip
