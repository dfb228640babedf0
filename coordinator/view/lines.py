"""Views for a standard output that is no terminal: a line of text, or of JSON, per event."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import IO

from fleetnas.coordinator.records.budget import shown_purpose
from fleetnas.coordinator.records.events import (
    BaselineMeasured,
    CampaignFinished,
    CampaignStarted,
    DeviceJoined,
    DeviceLost,
    Event,
    MeasurementFailed,
    MeasurementsSlowed,
    MeasurementTaken,
    PredictorUpdated,
    ProgressChanged,
    RegimeChanged,
    StoreAvailable,
    StoreUnavailable,
    TargetInfeasible,
    TargetMissed,
    TargetResolved,
    WinnerVerified,
    event_to_json,
)
from fleetnas.coordinator.records.run_progress import RunProgress
from fleetnas.coordinator.records.snapshot import Snapshot
from fleetnas.coordinator.records.totals import TargetTotals
from fleetnas.coordinator.view import wording
from fleetnas.device_profiles.plain_text import PRINTABLE, ascii_json


def event_line(event: Event) -> str | None:
    """Return an event in words, on one line; None for an event that views do not show."""
    text = _event_text(event)
    return None if text is None else wording.printable(text)


def event_lines(event: Event) -> list[str]:
    """Return the plain lines of an event; the end of a campaign with slowed devices has a warning beside its own."""
    return [line for line in (event_line(event), _warning_of_end(event)) if line is not None]


def _warning_of_end(event: Event) -> str | None:
    if not isinstance(event, CampaignFinished) or not event.devices_slowed:
        return None
    return wording.printable(f"{wording.slowed_settings(event.devices_slowed)}; {wording.SLOWED_ADVICE}")


def timed_line(at_s: float, text: str) -> str:
    """Return `text` behind the time of day (UTC)."""
    return f"{time.strftime('%H:%M:%S', time.gmtime(at_s))} {wording.printable(text)}"


def new_notes(before: Sequence[str], now: Sequence[str]) -> Sequence[str]:
    """Return the notes of a snapshot that came after those of an earlier one; each keeps only the latest."""
    for start in range(len(before)):
        kept = len(before) - start
        if tuple(before[start:]) == tuple(now[:kept]):
            return now[kept:]
    return now


def _event_text(event: Event) -> str | None:
    match event:
        case CampaignStarted() | DeviceJoined() | DeviceLost() | StoreUnavailable() | StoreAvailable():
            return _run_text(event)
        case ProgressChanged():
            return f"progress: {wording.progress(_progress(event))}"
        case CampaignFinished():
            return _end_text(event)
        case MeasurementTaken() | MeasurementFailed() | RegimeChanged() | MeasurementsSlowed():
            return _measurement_text(event)
        case TargetResolved() | WinnerVerified() | TargetMissed() | TargetInfeasible():
            return _target_text(event)
        case BaselineMeasured():
            return _baseline_text(event)
        case PredictorUpdated():
            return None


def _baseline_text(event: BaselineMeasured) -> str:
    label = f"{event.device}/{event.setting}: baseline {event.baseline}"
    if event.measured_ms is None:
        return f"{label} is not measured: {event.reason}"
    quality = "" if event.quality == "ok" else f", {event.quality}"
    return (
        f"{label} takes {wording.latency(event.measured_ms)} ms "
        f"{wording.half_width(event.half_width_percent or 0.0)}{quality}"
    )


def _progress(event: ProgressChanged) -> RunProgress:
    return RunProgress(event.done, event.left_s, event.least_left_s, event.most_left_s)


def _run_text(event: CampaignStarted | DeviceJoined | DeviceLost | StoreUnavailable | StoreAvailable) -> str:
    match event:
        case CampaignStarted():
            verb = "resumes" if event.resumed else "starts"
            if event.subnets:
                return (
                    f"run {event.run_id} {verb}: {event.supernet}, measures {', '.join(event.subnets)}, target "
                    f"{event.targets}, on each of {', '.join(event.devices) or 'no device'}"
                )
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
            return f"{event.reason}; until then nothing is acknowledged or dispatched, and agents keep their results"
        case StoreAvailable():
            return f"the store can be written again, after {wording.elapsed(event.away_s)}"


def _measurement_text(event: MeasurementTaken | MeasurementFailed | RegimeChanged | MeasurementsSlowed) -> str:
    match event:
        case MeasurementTaken():
            predicted = (
                "" if event.predicted_ms is None else f", predicted {wording.latency(event.predicted_ms)} beforehand"
            )
            quality = "" if event.quality == "ok" else f", {event.quality}"
            # A verification does not count against the budget.
            count = "" if event.purpose == "verification" else f", {event.measurements} of {event.budget}"
            return (
                f"{event.device}/{event.setting} measured {wording.latency(event.measured_ms)} ms "
                f"{wording.half_width(event.half_width_percent)}{predicted}{quality}: {shown_purpose(event.purpose)} "
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


def _target_text(event: TargetResolved | WinnerVerified | TargetMissed | TargetInfeasible) -> str:
    match event:
        case TargetResolved():
            return (
                f"{_target(event)} candidate {event.fingerprint}: measured {wording.latency(event.measured_ms)} ms, "
                f"predicted accuracy {wording.accuracy(event.accuracy)}"
            )
        case WinnerVerified():
            met = (
                f"{_target(event)} {wording.met_word(event.target_ms, event.target)}: {event.fingerprint} verified at "
                f"{wording.latency(event.verified_ms)} ms, accuracy {wording.accuracy(event.accuracy)}"
            )
            shown = wording.target_value(event.target, event.value, event.value_high)
            beside = wording.remarks(event.verified_ms, event.typical_ms, event.note)
            return "; ".join((met, *([shown] if shown else []), *beside))
        case TargetMissed():
            end = "missed" if event.final else "not met by this subnet"
            if event.target_ms is None and not event.target:
                end = "not measured"
            return f"{_target(event)} {end}: {event.reason}"
        case TargetInfeasible():
            return f"{_target(event)} infeasible: {event.reason}"


def _end_text(event: CampaignFinished) -> str:
    lost = f", lost {', '.join(event.devices_lost)}" if event.devices_lost else ""
    failed = f", failed {', '.join(event.devices_failed)}" if event.devices_failed else ""
    results = f", results in {event.results}" if event.results else ""
    totals = TargetTotals(event.targets_met, event.targets, event.without_target)
    ended = "timed out" if event.timed_out else str(event.status)
    return (
        f"run {event.run_id} {ended} after {wording.elapsed(event.elapsed_s)}: "
        f"{wording.targets_met(totals)}{lost}{failed}{results}"
    )


def _target(event: TargetResolved | WinnerVerified | TargetMissed | TargetInfeasible) -> str:
    named = wording.target_with_unit(event.target_ms, event.target)
    target = f" target {named}" if named else ""
    subnet = f" subnet {event.subnet}" if event.subnet else ""
    return f"{event.device}/{event.setting}{subnet}{target}"


class _LineWriter:
    """Writes lines at once; a closed pipe or a full disk ends the output, not the campaign."""

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

    def __init__(self, stream: IO[str], summary_follows: Callable[[], bool] = lambda: False) -> None:
        """`summary_follows` tells at the end whether a summary is printed next, which has the warning of the end."""
        self._writer = _LineWriter(stream)
        self._summary_follows = summary_follows
        self._end: CampaignFinished | None = None
        self._phase: str | None = None
        self._notes: tuple[str, ...] = ()

    def update(self, snapshot: Snapshot) -> None:
        """Write a change of phase and the coordinator's new notes."""
        if snapshot.phase != self._phase:
            self._phase = snapshot.phase
            self._write(snapshot.now_s, f"phase: {snapshot.phase}")
        for note in new_notes(self._notes, snapshot.log):
            self._write(snapshot.now_s, note)
        self._notes = snapshot.log

    def event(self, event: Event) -> None:
        """Write the line of an event."""
        if (line := event_line(event)) is not None:
            self._write(event.at_s, line)
        if isinstance(event, CampaignFinished):
            self._end = event

    def close(self) -> None:
        """Write the warning of the campaign's end, which a summary would repeat; all other lines are written."""
        end, self._end = self._end, None
        if end is not None and (warning := _warning_of_end(end)) is not None and not self._summary_follows():
            self._write(end.at_s, warning)

    def _write(self, at_s: float, text: str) -> None:
        self._writer.write(timed_line(at_s, text))


class JsonView:
    """One JSON object per event and line; snapshots are not written."""

    def __init__(self, stream: IO[str]) -> None:
        self._writer = _LineWriter(stream)

    def update(self, snapshot: Snapshot) -> None:
        """Do nothing: events say the same."""

    def event(self, event: Event) -> None:
        """Write the event."""
        self._writer.write(ascii_json(event_to_json(event)))

    def close(self) -> None:
        """Do nothing: every line is written at once."""
