"""Draw a chart of a sustained run for terminals: latency with its slow-down, temperature and clock over time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from fleetnas.agent.measuring.messages import WindowReply

MAX_WIDTH = 80
MIN_WIDTH = 40
_LEFT, _RIGHT = 9, 8
#: From empty to full, for terminals that know block characters and for those that do not.
_BLOCKS, _ASCII = " ▁▂▃▄▅▆▇█", " .:#"


@dataclass(frozen=True, slots=True)
class _Panel:
    title: str
    value: Callable[[WindowReply], float | None]
    rows: int
    #: The range that the panel shows at least, given its lowest value: noise is not blown up.
    least_range: Callable[[float], float]


_PANELS = (
    _Panel("latency as it ran, ms; right: slow-down", lambda window: window.median_ms, 8, lambda low: 0.1 * low),
    _Panel("temperature, C", lambda window: window.conditions.temperature_c, 4, lambda low: 5.0),
    _Panel("clock, MHz", lambda window: window.conditions.clock_mhz, 4, lambda low: 0.1 * abs(low)),
)


def draw_chart(
    windows: Sequence[WindowReply], fastest_ms: float, *, width: int = MAX_WIDTH, ascii_only: bool = False
) -> list[str]:
    """Return lines of at most `width` columns (40 at least, 80 at most), none of them with a blank at its end.

    `fastest_ms` is the latency with a slow-down of 1. The bars of a panel begin at its lowest value, not at 0.
    """
    columns = min(max(width, MIN_WIDTH), MAX_WIDTH) - _LEFT - _RIGHT
    total_s = windows[-1].end_s
    lines: list[str] = []
    for number, panel in enumerate(_PANELS):
        values = _per_column(windows, panel.value, columns, total_s)
        known = [value for value in values if value is not None]
        if not known:
            lines += [f"{panel.title}: no sensor"]
            continue
        low = min(known)
        if number > 0 and low == max(known):
            lines += [f"{panel.title}: {_label(low)} throughout"]
            continue
        high = max(max(known), low + panel.least_range(low))
        bars = _bars(values, low, high, panel.rows, _ASCII if ascii_only else _BLOCKS)
        left = [_label(high), *[""] * (panel.rows - 2), _label(low)]
        right = [""] * panel.rows
        if number == 0:
            right[0], right[-1] = (
                f"{_label(value / fastest_ms, _RIGHT - 2, ('.2f', '.0f'))}x" for value in (high, low)
            )
        edge = "|" if ascii_only else "│"
        lines += [panel.title]
        lines += [
            f"{label:>{_LEFT - 2}} {edge}{bar} {factor}".rstrip()
            for label, bar, factor in zip(left, bars, right, strict=True)
        ]
    return [*lines, _time_axis(total_s, columns)]


def format_time(seconds: float) -> str:
    """`12:30`, or `1:02:30` from an hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _per_column(
    windows: Sequence[WindowReply], value: Callable[[WindowReply], float | None], columns: int, total_s: float
) -> list[float | None]:
    """The median over the windows of each column's stretch of time; None where there is none."""
    found: list[float | None] = []
    for column in range(columns):
        from_s, to_s = total_s * column / columns, total_s * (column + 1) / columns
        within = [value(window) for window in windows if window.begin_s < to_s and window.end_s > from_s]
        known = [number for number in within if number is not None]
        found.append(median(known) if known else None)
    return found


def _bars(values: Sequence[float | None], low: float, high: float, rows: int, levels: str) -> list[str]:
    """Rows of bars, the highest first; the lowest value has the lowest bar that can be seen."""
    steps = len(levels) - 1
    most = rows * steps
    heights = [
        0 if value is None else 1 + round((most - 1) * (value - low) / (high - low) if high > low else 0)
        for value in values
    ]
    return [
        "".join(levels[min(max(height - row * steps, 0), steps)] for height in heights) for row in reversed(range(rows))
    ]


def _label(value: float, room: int = _LEFT - 2, forms: Sequence[str] = (".4g", ".3g", ".2g")) -> str:
    """The value in the first of the forms that has room, or as `1e+06`."""
    return next((text for form in forms if len(text := format(value, form)) <= room), f"{value:.0e}")


def _time_axis(total_s: float, columns: int) -> str:
    begin, middle, end = (format_time(total_s * part) for part in (0.0, 0.5, 1.0))
    left = f"{begin}{middle:^{columns - 2 * len(begin)}}"
    return f"{'':{_LEFT}}{left[: columns - len(end)]:{columns - len(end)}}{end}".rstrip()
