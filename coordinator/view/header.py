"""The first lines of the live view: how far the run is, and how its device settings stand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.segment import Segment
from rich.style import Style

from fleetnas.coordinator.records.snapshot import DeviceSnapshot, DeviceState, Snapshot
from fleetnas.coordinator.records.totals import target_totals
from fleetnas.coordinator.view import wording
from fleetnas.coordinator.view.strip import (
    BAD,
    BOLD,
    DIM,
    FAILED_TEXT,
    GOOD,
    PLAIN,
    WARN,
    Strip,
    bar,
    justified,
    padded,
    strip_width,
)

#: States in the order in which devices are shown where not all fit.
ATTENTION: tuple[DeviceState, ...] = (
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
_COUNT_STYLES: dict[DeviceState, Style] = {"failed": FAILED_TEXT, "lost": BAD}
#: Phases in which a run has ended.
_END_STYLES = {"complete": GOOD, "finished": GOOD, "partial": WARN, "failed": FAILED_TEXT, "interrupted": WARN}
_GAP = "  ·  "
#: Below this height the states share a line with the totals.
_TALL = 12
#: Cells of the bar of the run's progress: a share of the line, within these bounds.
_BAR_PART, _LEAST_BAR, _MOST_BAR = 6, 10, 30


def header(snapshot: Snapshot, width: int, height: int) -> list[Strip]:
    """Lay out the header in lines of `width` cells; `height` is that of the whole frame."""
    start = [
        Segment("fleetnas", BOLD),
        Segment(f"  {wording.printable(snapshot.run_id)}  {wording.printable(snapshot.supernet)}"),
    ]
    end = [
        Segment(wording.printable(snapshot.phase), _END_STYLES.get(snapshot.phase, GOOD)),
        Segment(f"  {wording.elapsed(snapshot.now_s - snapshot.started_s)}", BOLD),
    ]
    facts = [
        [Segment(_targets(snapshot))],
        [Segment(wording.count_of(sum(device.measurements for device in snapshot.devices), "measurement"))],
    ]
    settings = _settings(snapshot.devices)
    left = _time_left(snapshot, width)
    together = _joined([*left[0], *facts, settings])
    lines = [justified(start, end, width)]
    below: list[Strip] = []
    if strip_width(together) <= width:
        lines.append(padded(together, width))
    elif height >= _TALL:
        apart = [_joined([*shorter, *facts]) for shorter in left]
        lines.append(padded(next((strip for strip in apart if strip_width(strip) <= width), apart[-1]), width))
        # The state of the only one stands beside its name.
        below = [padded(_shorter_settings(settings, snapshot.devices, width), width)]
        below = below if len(snapshot.devices) > 1 else []
    else:
        lines.append(padded(_joined([*left[-1], *facts, state_counts(snapshot.devices)]), width))
    warning = wording.slowed_warning(snapshot.slowed)
    return [*lines, *([padded([Segment(warning, WARN)], width)] if warning else []), *below]


def state_counts(devices: Sequence[DeviceSnapshot], style: Style = PLAIN) -> Strip:
    """Count devices by state, as `1 failed, 2 measuring`."""
    states = Counter(device.state for device in devices)
    strip: Strip = []
    for state in ATTENTION:
        if states[state]:
            strip += [Segment(", ", style)] if strip else []
            strip.append(Segment(f"{states[state]} {state}", _COUNT_STYLES.get(state, style)))
    return strip


def _settings(devices: Sequence[DeviceSnapshot]) -> Strip:
    """Return the number of device settings, how many are in which state, and the classes of equal boards among them."""
    counts = state_counts(devices)
    strip = [Segment(wording.count_of(len(devices), "device setting")), *([Segment(": "), *counts] if counts else [])]
    classes = len({device.board.class_name for device in devices if device.board is not None})
    if classes and len(devices) > 1:
        strip.append(Segment(f"; {classes} {'class' if classes == 1 else 'classes'} of equal boards", DIM))
    return strip


def _shorter_settings(whole: Strip, devices: Sequence[DeviceSnapshot], width: int) -> Strip:
    """Return what is said of all device settings; where that does not fit, the states alone, the worst first."""
    return whole if strip_width(whole) <= width else state_counts(devices)


def _time_left(snapshot: Snapshot, width: int) -> list[list[Strip]]:
    """Return what is said of progress and time left, the longest first; nothing where it is not known."""
    progress = snapshot.progress
    if progress is None or not progress.left_s:
        return [[]]
    short = wording.progress(progress, short=True)
    cells = min(_MOST_BAR, max(_LEAST_BAR, width // _BAR_PART))
    return [
        [[*bar(progress.done, cells), Segment(f" {wording.progress(progress)}", BOLD)]],
        [[*bar(progress.done, _LEAST_BAR), Segment(f" {short}", BOLD)]],
        [[Segment(short, BOLD)]],
    ]


def _joined(parts: Sequence[Strip]) -> Strip:
    strip: Strip = []
    for part in parts:
        strip += [Segment(_GAP, DIM), *part] if strip else part
    return strip


def _targets(snapshot: Snapshot) -> str:
    totals = target_totals(snapshot.devices)
    if not totals.asked:
        return "targets not chosen yet"
    met = wording.targets_met(totals)
    return met if any(device.targets for device in snapshot.devices) else f"{met}, none chosen yet"
