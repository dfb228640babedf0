"""The live view: a campaign on a terminal, drawn from its snapshot alone."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.segment import Segment

from fleetnas.coordinator.records.events import Event
from fleetnas.coordinator.records.snapshot import DeviceSnapshot, DeviceState, Snapshot
from fleetnas.coordinator.records.totals import target_totals
from fleetnas.coordinator.view import wording
from fleetnas.coordinator.view.device_block import Detail, device_block
from fleetnas.coordinator.view.lines import event_lines, new_notes, timed_line
from fleetnas.coordinator.view.strip import (
    BOLD,
    DIM,
    GOOD,
    WARN,
    Strip,
    in_ascii,
    justified,
    padded,
    side_by_side,
)

_GAP = 1
_COMFORTABLE_WIDTH = 78
_LOG_LINES_KEPT_FREE = 3
_MAX_LOG = 8
_FACTS_GAP = "  ·  "
_LEGEND = "~ predicted accuracy   · ? not yet verified   err: the predictor's, held out"
_LEGEND_MORE = "   predicted: without its own measurements   typical: at the run's median slow-down"
#: States in the order in which devices are shown where not all fit.
_ATTENTION: tuple[DeviceState, ...] = (
    "failed",
    "lost",
    "verifying",
    "measuring",
    "fetching",
    "waiting",
    "idle",
    "offline",
    "done",
)


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
    lines = _header(snapshot, width)
    room = height - len(lines)
    log_room = min(_LOG_LINES_KEPT_FREE, len(snapshot.log)) if height >= 20 else 0
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
        lines += [padded([Segment(wording.printable(line))], width) for line in snapshot.log[-min(room, _MAX_LOG) :]]
    return lines[:height]


def _header(snapshot: Snapshot, width: int) -> list[Strip]:
    start = [
        Segment("fleetnas", BOLD),
        Segment(f"  {wording.printable(snapshot.run_id)}  {wording.printable(snapshot.supernet)}"),
    ]
    end = [
        Segment(wording.printable(snapshot.phase), GOOD),
        Segment(f"  {wording.elapsed(snapshot.now_s - snapshot.started_s)}", BOLD),
    ]
    states = Counter(device.state for device in snapshot.devices)
    counted = ", ".join(f"{states[state]} {state}" for state in _ATTENTION if states[state])
    number = wording.count_of(len(snapshot.devices), "device setting")
    facts = [
        _targets(snapshot),
        wording.count_of(sum(device.measurements for device in snapshot.devices), "measurement"),
    ]
    progress = snapshot.progress if snapshot.progress is not None and snapshot.progress.left_s else None
    left = [wording.progress(progress)] if progress is not None else []
    left_short = [wording.progress(progress, short=True)] if progress is not None else []
    shown = [
        _FACTS_GAP.join([*left, *facts, f"{number}: {counted}" if counted else number]),
        _FACTS_GAP.join([*left, *facts, counted or number]),
        _FACTS_GAP.join([*left_short, *facts, counted or number]),
    ]
    fitting = next((line for line in shown if len(line) <= width), shown[-1])
    lines = [justified(start, end, width), padded([Segment(fitting)], width)]
    warning = wording.slowed_warning((device.label, device.quality) for device in snapshot.devices)
    return [*lines, padded([Segment(warning, WARN)], width)] if warning else lines


def _targets(snapshot: Snapshot) -> str:
    totals = target_totals(snapshot.devices)
    if not totals.asked:
        return "targets not chosen yet"
    met = wording.targets_met(totals)
    return met if any(device.targets for device in snapshot.devices) else f"{met}, none chosen yet"


def _devices(devices: Sequence[DeviceSnapshot], width: int, room: int) -> list[Strip]:
    """Lay out all devices in the most detail that fits into `room` lines; where none does, the first and a count."""
    for detail in Detail:
        if detail.value > width and detail is not Detail.LINE:
            continue
        for columns in _column_counts(len(devices), width, detail):
            rows = _rows(devices, columns)
            heights = [max(detail.height(device) for device in row) for row in rows]
            if sum(heights) <= room:
                return _grid(rows, heights, columns, detail, width)
    columns = _column_counts(len(devices), width, Detail.LINE)[-1]
    ranked = sorted(devices, key=lambda device: _ATTENTION.index(device.state))
    shown, rest = ranked[: (room - 1) * columns], ranked[(room - 1) * columns :]
    rows = _rows(shown, columns)
    states = Counter(device.state for device in rest)
    counted = ", ".join(f"{states[state]} {state}" for state in _ATTENTION if states[state])
    more = padded([Segment(f"and {len(rest)} more: {counted}", DIM)], width)
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
    lines: list[Strip] = []
    for row, height in zip(rows, heights, strict=True):
        blocks = [device_block(device, detail, cells, height) for device, cells in zip(row, widths, strict=False)]
        lines += side_by_side(blocks, widths[: len(blocks)], _GAP)
    return lines


class LiveView:
    """Redraws the terminal when it is given a new snapshot, at most `refresh_per_s` times a second.

    It draws inside `update` and starts no thread: between updates it costs nothing, which matters on a machine
    that measures latencies. The frame is on the alternate screen; what was on the terminal before comes back.
    """

    def __init__(
        self, console: Console, refresh_per_s: float = 4.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._console = console
        self._interval_s = 1.0 / refresh_per_s
        self._clock = clock
        self._drawn_at_s: float | None = None
        self._drawn: Snapshot | None = None
        self._latest: Snapshot | None = None
        self._lines: deque[str] = deque(maxlen=_MAX_LOG)
        self._notes: tuple[str, ...] = ()
        self._live = Live(console=console, screen=True, auto_refresh=False, redirect_stdout=False)
        self._closed = False

    def update(self, snapshot: Snapshot) -> None:
        """Show `snapshot`, or keep it for the next update when the last frame is too recent."""
        for note in new_notes(self._notes, snapshot.log):
            self._lines.append(timed_line(snapshot.now_s, note))
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
        self._lines.extend(timed_line(event.at_s, line) for line in event_lines(event))

    def close(self) -> None:
        """Leave the alternate screen, and print the last frame."""
        if self._closed:
            return
        self._closed = True
        if self._live.is_started:
            self._live.stop()
        if self._latest is not None:
            self._console.print(render(self._latest))
