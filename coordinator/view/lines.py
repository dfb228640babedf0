"""The view where stdout is no terminal: a line of text, or of JSON, per event."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import IO

from fleetnas.coordinator.records.events import (
    CampaignFinished,
    CampaignStarted,
    DeviceJoined,
    DeviceLost,
    Event,
    MeasurementFailed,
    MeasurementsSlowed,
    MeasurementTaken,
    PredictorUpdated,
    RegimeChanged,
    StoreAvailable,
    StoreUnavailable,
    TargetInfeasible,
    TargetMissed,
    TargetResolved,
    WinnerVerified,
    event_to_json,
)
from fleetnas.coordinator.records.snapshot import ProgressSnapshot, Snapshot
from fleetnas.coordinator.records.totals import TargetTotals
from fleetnas.coordinator.view import wording
from fleetnas.device_profiles.plain_text import PRINTABLE, ascii_json

_PROGRESS_STEPS = 4


def event_line(event: Event) -> str | None:
    """The event in words, on one line; None for one that is not worth a line."""
    text = _event_text(event)
    return None if text is None else wording.printable(text)


def event_lines(event: Event) -> list[str]:
    """Return the plain lines of an event; the end of a campaign with slowed devices has a loud one beside its own."""
    lines = [event_line(event)]
    if isinstance(event, CampaignFinished) and event.devices_slowed:
        warning = f"{wording.slowed_settings(event.devices_slowed)}; {wording.SLOWED_ADVICE}"
        lines.append(wording.printable(warning))
    return [line for line in lines if line is not None]


def timed_line(at_s: float, text: str) -> str:
    """`text` behind the time of day (UTC)."""
    return f"{time.strftime('%H:%M:%S', time.gmtime(at_s))} {wording.printable(text)}"


def new_notes(before: Sequence[str], now: Sequence[str]) -> Sequence[str]:
    """The notes of a snapshot that came after those of an earlier one; each keeps only the latest."""
    for start in range(len(before)):
        kept = len(before) - start
        if tuple(before[start:]) == tuple(now[:kept]):
            return now[kept:]
    return now


def _event_text(event: Event) -> str | None:
    match event:
        case CampaignStarted():
            verb = "resumes" if event.resumed else "starts"
            return (
                f"run {event.run_id} {verb}: {event.supernet}, {event.strategy} search, targets {event.targets}, "
                f"at most {wording.count_of(event.budget, 'measurement')} on each of "
                f"{', '.join(event.devices) or 'no device'}"
            )
        case DeviceJoined():
            return f"{event.device} joined: {event.model}, {', '.join(event.settings)}"
        case DeviceLost():
            return f"{event.device} lost: {event.reason}"
        case StoreUnavailable():
            return f"{event.reason}; until then nothing is acknowledged or handed out, and agents keep their results"
        case StoreAvailable():
            return f"the store can be written again, after {wording.elapsed(event.away_s)}"
        case MeasurementTaken():
            predicted = (
                "" if event.predicted_ms is None else f", predicted {wording.latency(event.predicted_ms)} beforehand"
            )
            quality = "" if event.quality == "ok" else f", {event.quality}"
            # A verification does not count against the budget.
            count = "" if event.purpose == "verification" else f", {event.measurements} of {event.budget}"
            return (
                f"{event.device}/{event.setting} measured {wording.latency(event.measured_ms)} ms "
                f"{wording.half_width(event.half_width_percent)}{predicted}{quality}: {event.purpose} "
                f"{event.fingerprint}{count}"
            )
        case MeasurementFailed():
            detail = f" ({event.detail})" if event.detail else ""
            return f"{event.device}/{event.setting} could not measure {event.fingerprint}: {event.reason}{detail}"
        case RegimeChanged():
            slowdown = (
                "" if event.slowdown is None else f": {event.slowdown:.2f} times the latency at undisturbed speed"
            )
            return f"{event.device}/{event.setting} runs at another lasting speed{slowdown}; measurements go on"
        case MeasurementsSlowed():
            label = f"{event.device}/{event.setting}"
            warning = wording.slowed_setting(label, event.slowed, event.measured, event.largest_slowdown)
            return f"{warning}; {wording.SLOWED_ADVICE}"
        case PredictorUpdated():
            return None
        case TargetResolved():
            return (
                f"{_target(event)} candidate {event.fingerprint}: measured {wording.latency(event.measured_ms)} ms, "
                f"predicted accuracy {wording.accuracy(event.accuracy)}"
            )
        case WinnerVerified():
            met = (
                f"{_target(event)} met: {event.fingerprint} verified at {wording.latency(event.verified_ms)} ms, "
                f"accuracy {wording.accuracy(event.accuracy)}"
            )
            return "; ".join((met, *wording.remarks(event.verified_ms, event.typical_ms, event.note)))
        case TargetMissed():
            end = "missed" if event.final else "not met by this subnet"
            return f"{_target(event)} {end}: {event.reason}"
        case TargetInfeasible():
            return f"{_target(event)} infeasible: {event.reason}"
        case CampaignFinished():
            lost = f", lost {', '.join(event.devices_lost)}" if event.devices_lost else ""
            failed = f", failed {', '.join(event.devices_failed)}" if event.devices_failed else ""
            results = f", results in {event.results}" if event.results else ""
            return (
                f"run {event.run_id} {event.status} after {wording.elapsed(event.elapsed_s)}: "
                f"{wording.targets_met(TargetTotals(event.targets_met, event.targets))}{lost}{failed}{results}"
            )


def _target(event: TargetResolved | WinnerVerified | TargetMissed | TargetInfeasible) -> str:
    return f"{event.device}/{event.setting} target {wording.target(event.target_ms)} ms"


class _LineWriter:
    """Writes lines at once; a reader that went away or a full disk ends the output, not the campaign."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._encoding = getattr(stream, "encoding", None) or "utf-8"
        self._open = True

    def write(self, line: str) -> None:
        if not self._open:
            return
        try:
            self._stream.write(line.encode(self._encoding, PRINTABLE).decode(self._encoding) + "\n")
            self._stream.flush()
        except (OSError, ValueError):  # ValueError: closed
            self._open = False


class LinesView:
    """Plain lines with the time of day (UTC), so that progress shows in a pipe or a log file."""

    def __init__(self, stream: IO[str]) -> None:
        self._writer = _LineWriter(stream)
        self._phase: str | None = None
        self._notes: tuple[str, ...] = ()
        self._steps: dict[str, int] = {}

    def update(self, snapshot: Snapshot) -> None:
        """Writes a change of phase, the coordinator's notes, and each quarter of what takes time."""
        if snapshot.phase != self._phase:
            self._phase = snapshot.phase
            self._write(snapshot.now_s, f"phase: {snapshot.phase}")
        for note in new_notes(self._notes, snapshot.log):
            self._write(snapshot.now_s, note)
        self._notes = snapshot.log
        for progress in snapshot.progress:
            self._write_progress(snapshot.now_s, progress)

    def _write_progress(self, now_s: float, progress: ProgressSnapshot) -> None:
        step = int((progress.fraction or 0.0) * _PROGRESS_STEPS)
        if step > self._steps.get(progress.label, -1):
            self._steps[progress.label] = step
            self._write(now_s, f"{progress.label}: {wording.amount(progress)}")

    def event(self, event: Event) -> None:
        """Writes the event, if it is worth a line."""
        for line in event_lines(event):
            self._write(event.at_s, line)

    def close(self) -> None:
        """Every line is out already."""

    def _write(self, at_s: float, text: str) -> None:
        self._writer.write(timed_line(at_s, text))


class JsonView:
    """One JSON object per event and line; snapshots are not written."""

    def __init__(self, stream: IO[str]) -> None:
        self._writer = _LineWriter(stream)

    def update(self, snapshot: Snapshot) -> None:
        """Snapshots repeat what the events said."""

    def event(self, event: Event) -> None:
        """Writes the event."""
        self._writer.write(ascii_json(event_to_json(event)))

    def close(self) -> None:
        """Every line is out already."""
