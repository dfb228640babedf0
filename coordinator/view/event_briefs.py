"""Events as the live view shows them: what matters comes first, because a line that is too long loses its end."""

from __future__ import annotations

from rich.segment import Segment
from rich.style import Style

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
)
from fleetnas.coordinator.records.statuses import RunStatus
from fleetnas.coordinator.records.totals import TargetTotals
from fleetnas.coordinator.view import wording
from fleetnas.coordinator.view.lines import event_line
from fleetnas.coordinator.view.names import short_label
from fleetnas.coordinator.view.strip import BAD, FAILED_TEXT, GOOD, PLAIN, WARN, Strip, left

#: Signs at the beginning of a line, which decide its colour.
_MET, _MISSED, _FAILED, _NOTICE = "✓ ", "✗ ", "✘ ", "! "
_STYLES: dict[str, Style] = {_MET: GOOD, _MISSED: BAD, _FAILED: FAILED_TEXT, _NOTICE: WARN}
#: Characters of the time of day before the text of a line, its blank included.
_TIME = len("00:00:00 ")


def brief_line(event: Event) -> str | None:
    """Return an event on one line, device and value first; None where the rest of the frame shows it already."""
    text = _text(event)
    return None if text is None else wording.printable(text)


def line_strip(line: str, width: int) -> Strip:
    """Return a line of the log, behind its time of day, in the colour of its sign and in `width` cells."""
    return [Segment(left(wording.printable(line), width), _STYLES.get(line[_TIME : _TIME + len(_MET)], PLAIN))]


def _text(event: Event) -> str | None:
    match event:
        case ProgressChanged() | PredictorUpdated():
            return None
        case CampaignStarted() | CampaignFinished():
            return _run_text(event)
        case DeviceJoined() | StoreAvailable():
            return event_line(event)
        case DeviceLost() | StoreUnavailable():
            return f"{_FAILED}{event_line(event)}"
        case MeasurementTaken() | MeasurementFailed() | RegimeChanged() | MeasurementsSlowed() | BaselineMeasured():
            return _measurement_text(event)
        case TargetResolved() | WinnerVerified() | TargetMissed() | TargetInfeasible():
            return _target_text(event)


def _run_text(event: CampaignStarted | CampaignFinished) -> str:
    if isinstance(event, CampaignStarted):
        verb = "resumes" if event.resumed else "starts"
        work = f"measures {', '.join(event.subnets)}" if event.subnets else f"{event.strategy} search"
        settings = wording.count_of(len(event.devices), "device setting")
        budget = wording.count_of(event.budget, "measurement")
        return f"{verb}: targets {event.targets}, {settings}, at most {budget} each, {work}"
    totals = TargetTotals(event.targets_met, event.targets, event.without_target)
    sign = {RunStatus.COMPLETE: _MET, RunStatus.FAILED: _FAILED}.get(event.status, _NOTICE)
    ended = f"{sign}{'timed out' if event.timed_out else event.status} after {wording.elapsed(event.elapsed_s)}"
    parts = [
        f"{ended}: {wording.targets_met(totals)}",
        f"lost {', '.join(event.devices_lost)}" if event.devices_lost else "",
        f"failed {', '.join(event.devices_failed)}" if event.devices_failed else "",
        f"results in {event.results}" if event.results else "",
    ]
    return ", ".join(part for part in parts if part)


def _measurement_text(
    event: MeasurementTaken | MeasurementFailed | RegimeChanged | MeasurementsSlowed | BaselineMeasured,
) -> str:
    label = short_label(event.device, event.setting)
    match event:
        case MeasurementTaken():
            return _taken_text(event, label)
        case MeasurementFailed():
            detail = f" ({event.detail})" if event.detail else ""
            number = f"failure {event.failures}"
            return f"{_FAILED}{label}: {event.reason}{detail}, {number}, subnet {event.fingerprint}"
        case RegimeChanged():
            now = "" if event.slowdown is None else f": {event.slowdown:.2f} times the latency at undisturbed speed"
            return f"{_NOTICE}{label}: another lasting speed{now}"
        case MeasurementsSlowed():
            most = "" if event.largest_slowdown is None else f", up to {event.largest_slowdown:.2f}x"
            counts = f"{event.slowed} of {event.measured} measurements slowed down{most}"
            return f"{_NOTICE}{label}: {counts}; {wording.SLOWED_ADVICE}"
        case BaselineMeasured():
            if event.measured_ms is None:
                return f"{_FAILED}{label}: baseline {event.baseline} is not measured: {event.reason}"
            quality = "" if event.quality == "ok" else f", {event.quality}"
            precision = wording.half_width(event.half_width_percent or 0.0)
            return f"{label}: baseline {event.baseline} {wording.latency(event.measured_ms)} ms{quality}, {precision}"


def _taken_text(event: MeasurementTaken, label: str) -> str:
    verification = event.purpose == "verification"
    parts = [
        f"{label}: {wording.latency(event.measured_ms)} ms",
        "" if event.quality == "ok" else event.quality,
        # A verification does not count against the budget.
        "verification" if verification else f"{event.measurements} of {event.budget}",
        "" if event.predicted_ms is None else f"predicted {wording.latency(event.predicted_ms)}",
        wording.half_width(event.half_width_percent),
        f"{'' if verification else shown_purpose(event.purpose) + ' '}{event.fingerprint}",
    ]
    sign = _NOTICE if event.quality == "slowed" else ""
    return sign + ", ".join(part for part in parts if part)


def _target_text(event: TargetResolved | WinnerVerified | TargetMissed | TargetInfeasible) -> str:
    target = wording.target_with_unit(event.target_ms, event.target)
    subnet = f"subnet {event.subnet}" if event.subnet else ""
    label = f"{short_label(event.device, event.setting)}: {' '.join(part for part in (subnet, target) if part)}"
    match event:
        case TargetResolved():
            return (
                f"{label} candidate takes {wording.latency(event.measured_ms)} ms, "
                f"~{wording.accuracy(event.accuracy)}, {event.fingerprint}"
            )
        case WinnerVerified():
            word = wording.met_word(event.target_ms, event.target)
            verified, accuracy = wording.latency(event.verified_ms), wording.accuracy(event.accuracy)
            met = f"{_MET}{label} {word}: {verified} ms, accuracy {accuracy}"
            value = wording.target_value(event.target, event.value, event.value_high)
            beside = wording.remarks(event.verified_ms, event.typical_ms, event.note)
            return "; ".join((met, *([value] if value else []), *beside, event.fingerprint))
        case TargetMissed():
            end = "missed" if event.final else "not met by this subnet"
            if event.target_ms is None and not event.target:
                end = "not measured"
            return f"{_MISSED if event.final else ''}{label} {end}: {event.reason}"
        case TargetInfeasible():
            return f"{_MISSED}{label} infeasible: {event.reason}"
