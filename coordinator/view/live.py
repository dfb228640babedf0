"""The live view: a campaign on a terminal, drawn from its snapshot alone."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.segment import Segment

from fleetnas.coordinator.records.events import Event
from fleetnas.coordinator.records.snapshot import DeviceSnapshot, Snapshot
from fleetnas.coordinator.view.device_block import Detail, device_block, fits_beside
from fleetnas.coordinator.view.event_briefs import brief_line, line_strip
from fleetnas.coordinator.view.header import ATTENTION, header, state_counts
from fleetnas.coordinator.view.lines import new_notes, timed_line
from fleetnas.coordinator.view.names import name_cells
from fleetnas.coordinator.view.strip import DIM, Strip, in_ascii, padded, side_by_side

_GAP = 1
_COMFORTABLE_WIDTH = 78
_LOG_LINES_KEPT_FREE = 3
#: Height from which on lines of the log have a place of their own.
_TALL = 20
#: Lines of the log that are kept: a tall terminal is filled with them.
_MAX_LOG = 80
#: Share of the devices' lines that panels with a table beside the facts may take: below it their rows would be short.
_WIDE_SHARE = 0.6
#: Notes of the coordinator that stay on the terminal where a summary follows the view.
_NOTES_KEPT = 20
_LEGEND = "~ predicted accuracy   · ? not yet verified   err: the predictor's, held out"
_LEGEND_MORE = "   predicted: without its own measurements   typical: at the run's median slow-down"


def render(snapshot: Snapshot) -> CampaignFrame:
    """Return a renderable of a snapshot; it depends on the snapshot and on the terminal's size alone."""
    return CampaignFrame(snapshot)


@dataclass(frozen=True)
class CampaignFrame:
    """A rich renderable that fits itself into the width and height it is given."""

    snapshot: Snapshot

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        height = options.height or options.size.height
        for strip in frame_strips(self.snapshot, options.max_width, height):
            yield from in_ascii(strip) if options.ascii_only else strip
            yield Segment.line()


def frame_strips(snapshot: Snapshot, width: int, height: int) -> list[Strip]:
    """Lay out a snapshot in at most `height` lines of at most `width` cells each."""
    lines = header(snapshot, width, height)
    room = height - len(lines)
    log_room = min(_LOG_LINES_KEPT_FREE, len(snapshot.log)) if height >= _TALL else 0
    if snapshot.devices:
        lines += _devices(snapshot.devices, width, max(1, room - log_room))
    else:
        lines.append(padded([Segment("No device yet: run `fleetnas-agent run --broker HOST:PORT` on a board.")], width))
    room = height - len(lines)
    if room > _LOG_LINES_KEPT_FREE + 1:
        more = _LEGEND_MORE if len(_LEGEND) + len(_LEGEND_MORE) <= width else ""
        lines.append(padded([Segment(_LEGEND + more, DIM)], width))
        room -= 1
    if room > 0:
        lines += [line_strip(line, width) for line in snapshot.log[-room:]]
    return lines[:height]


def _devices(devices: Sequence[DeviceSnapshot], width: int, room: int) -> list[Strip]:
    """Lay out all devices in the most detail that fits into `room` lines; where none does, the first and a count."""
    for detail in Detail:
        if detail.value > width and detail is not Detail.LINE:
            continue
        for columns in _column_counts(len(devices), width, detail):
            rows = _rows(devices, columns)
            heights = [max(detail.height(device) for device in row) for row in rows]
            if sum(heights) <= (room * _WIDE_SHARE if detail is Detail.WIDE else room) and (
                detail is not Detail.WIDE or all(fits_beside(device, width) for device in devices)
            ):
                return _grid(rows, heights, columns, detail, width)
    columns = _column_counts(len(devices), width, Detail.LINE)[-1]
    ranked = sorted(devices, key=lambda device: ATTENTION.index(device.state))
    shown, rest = ranked[: (room - 1) * columns], ranked[(room - 1) * columns :]
    rows = _rows(shown, columns)
    more = padded([Segment(f"and {len(rest)} more: ", DIM), *state_counts(rest, DIM)], width)
    return [*_grid(rows, [1] * len(rows), columns, Detail.LINE, width), more]


def _column_counts(devices: int, width: int, detail: Detail) -> range:
    """Return the numbers of columns to try: from comfortable to as narrow as the detail allows."""
    most = max(1, min(devices, (width + _GAP) // (detail.value + _GAP)))
    return range(min(most, max(1, width // _COMFORTABLE_WIDTH)), most + 1)


def _rows(devices: Sequence[DeviceSnapshot], columns: int) -> list[Sequence[DeviceSnapshot]]:
    return [devices[start : start + columns] for start in range(0, len(devices), columns)]


def _grid(
    rows: Sequence[Sequence[DeviceSnapshot]],
    heights: Sequence[int],
    columns: int,
    detail: Detail,
    width: int,
) -> list[Strip]:
    inner = width - _GAP * (columns - 1)
    widths = [inner // columns + (index < inner % columns) for index in range(columns)]
    names = name_cells((device for row in rows for device in row), inner // columns)
    lines: list[Strip] = []
    for row, height in zip(rows, heights, strict=True):
        blocks = [
            device_block(device, detail, cells, height, names) for device, cells in zip(row, widths, strict=False)
        ]
        lines += side_by_side(blocks, widths[: len(blocks)], _GAP)
    return lines


class LiveView:
    """Redraws the terminal when it is given a new snapshot, at most `refresh_per_s` times a second.

    It draws inside `update` and starts no thread: between updates it costs nothing, which matters on a machine
    that measures latencies. The frame is on the alternate screen; what was on the terminal before comes back.
    """

    def __init__(
        self,
        console: Console,
        refresh_per_s: float = 4.0,
        clock: Callable[[], float] = time.monotonic,
        summary_follows: Callable[[], bool] = lambda: False,
    ) -> None:
        """`summary_follows` tells at the end whether a summary is printed next: the last frame is then left out."""
        self._console = console
        self._interval_s = 1.0 / refresh_per_s
        self._clock = clock
        self._summary_follows = summary_follows
        self._drawn_at_s: float | None = None
        self._drawn: Snapshot | None = None
        self._latest: Snapshot | None = None
        self._lines: deque[str] = deque(maxlen=_MAX_LOG)
        self._notes: tuple[str, ...] = ()
        self._noted: deque[str] = deque(maxlen=_NOTES_KEPT)
        self._live = Live(console=console, screen=True, auto_refresh=False, redirect_stdout=False)
        self._closed = False

    def update(self, snapshot: Snapshot) -> None:
        """Show `snapshot`, or keep it for the next update when the last frame is too recent."""
        for note in new_notes(self._notes, snapshot.log):
            line = timed_line(snapshot.now_s, note)
            self._lines.append(line)
            self._noted.append(line)
        self._notes = snapshot.log
        self._latest = snapshot = replace(snapshot, log=tuple(self._lines))
        now_s = self._clock()
        if self._closed or snapshot == self._drawn:
            return
        if self._drawn_at_s is not None and now_s - self._drawn_at_s < self._interval_s:
            return
        if not self._live.is_started:
            self._live.start()
        self._live.update(render(snapshot), refresh=True)
        self._drawn, self._drawn_at_s = snapshot, now_s

    def event(self, event: Event) -> None:
        """Keep an event; its line is shown with the next snapshot, among the coordinator's notes."""
        line = brief_line(event)
        if line is not None:
            self._lines.append(timed_line(event.at_s, line))

    def close(self) -> None:
        """Leave the alternate screen, and print the last frame; before a summary, the coordinator's notes alone."""
        if self._closed:
            return
        self._closed = True
        if self._live.is_started:
            self._live.stop()
        if self._summary_follows():
            for line in self._noted:
                self._console.print(line, markup=False, highlight=False, soft_wrap=True)
        elif self._latest is not None:
            # How the run ended came after the last snapshot, and stands last.
            self._console.print(render(replace(self._latest, log=tuple(self._lines))))
