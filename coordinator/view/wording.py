"""Words for figures and states, the same in every view."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from fleetnas.coordinator.records.data_quality import DataQuality
from fleetnas.coordinator.records.predictor_error import PredictorError
from fleetnas.coordinator.records.run_progress import RunProgress
from fleetnas.coordinator.records.snapshot import BaselineSnapshot, DeviceState, TargetSnapshot
from fleetnas.coordinator.records.statuses import SettingStatus
from fleetnas.coordinator.records.target_kinds import Target, TargetKind
from fleetnas.coordinator.records.totals import TargetTotals
from fleetnas.fleet_protocol.errors import UsageError

#: Advice on a device whose measurements were slowed down.
SLOWED_ADVICE = (
    "these latencies are those of a disturbed device: let nothing else run on it and keep it cool, or measure it under "
    "--conditions sustained"
)

_STATE_MARKS: dict[DeviceState, str] = {
    "offline": "○",
    "fetching": "↓",
    "measuring": "●",
    "waiting": "◌",
    "verifying": "◆",
    "done": "✓",
    "lost": "✗",
    "failed": "✗",
    "idle": "·",
}
_STATUSES = (SettingStatus.FINISHED, SettingStatus.RUNNING, SettingStatus.LOST, SettingStatus.FAILED)
#: A typical latency is shown beside the verified one where it differs by more than this, relative.
_SAME_LATENCY = 0.02
#: Device settings that a warning names.
_MOST_NAMED = 5
_CONTROL = dict.fromkeys((*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029), " ")


def printable(text: str) -> str:
    """Return `text` on one line and without control characters: text of a device must not steer the terminal."""
    return text.translate(_CONTROL)


def latency(value_ms: float | None) -> str:
    """Return a latency with three significant digits; None gives a dash."""
    if value_ms is None:
        return "–"
    if value_ms < 1:
        return f"{value_ms:.3f}"
    return f"{value_ms:.2f}" if value_ms < 10 else f"{value_ms:.1f}" if value_ms < 1000 else f"{value_ms:.0f}"


def half_width(percent: float) -> str:
    """Return the 95 % half-width of a median, of 100 % and more without its value."""
    return f"±{percent:.1f} %" if percent < 100 else "±100 % or more"


def target(value_ms: float | None, other: str = "") -> str:
    """Return a target in ms without trailing zeros; a dash where given subnets are compared with none.

    `other` is the text of a target of another kind than latency, which is shown with its unit.
    """
    kind = other_kind(other)
    if other:
        if kind is None:
            return printable(other)
        if kind.kind is TargetKind.PERCENTILE:
            return f"p{kind.percentile:g} {kind.value:.4g}"
        return f"≥{kind.value:g} %" if kind.kind is TargetKind.ACCURACY else kind.label
    if value_ms is None:
        return "–"
    return f"{value_ms:.4g}" if value_ms < 1000 else f"{value_ms:.0f}"


def target_with_unit(value_ms: float | None, other: str = "") -> str:
    """Return a target with its unit, as `2 ms`, `p95 33 ms` or `30 fps`; empty where given subnets have none."""
    if other:
        return target(value_ms, other) + (" ms" if other.startswith("p") else "")
    return "" if value_ms is None else f"{target(value_ms)} ms"


def accuracy(share: float | None) -> str:
    """Return a share in [0, 1] as percent; None gives a dash."""
    return "–" if share is None else f"{share * 100:.1f} %"


def target_accuracy(snapshot: TargetSnapshot) -> str:
    """Return the evaluated accuracy, or the predicted one marked with `~`."""
    if snapshot.evaluated_accuracy is not None:
        return accuracy(snapshot.evaluated_accuracy)
    return "–" if snapshot.accuracy is None else f"~{accuracy(snapshot.accuracy)}"


def target_status(snapshot: TargetSnapshot) -> str:
    """Return the status of a target in a few words; a result only once it is verified."""
    if snapshot.met is not None:
        word = met_word(snapshot.target_ms, snapshot.target) if snapshot.met else printable(snapshot.reason) or "missed"
        value = target_value(snapshot.target, snapshot.value, snapshot.value_high)
        beside = remarks(snapshot.verified_ms, snapshot.typical_ms, snapshot.note)
        shown = "; ".join((word, *([value] if value and value not in word else []), *beside))
        return f"{snapshot.subnet}: {shown}" if snapshot.subnet else shown
    if snapshot.subnet:
        return f"{snapshot.subnet}: {'measuring' if snapshot.verified_ms is None else 'measured so far'}"
    if snapshot.reason:
        return printable(snapshot.reason)
    if snapshot.measured_ms is not None:
        return "measured"
    return "predicted" if snapshot.predicted_ms is not None else "searching"


def target_mark(snapshot: TargetSnapshot) -> str:
    """Return the sign for a target's status; colour is never the only carrier."""
    return "·" if snapshot.met is None else "✓" if snapshot.met else "✗"


def state_mark(state: DeviceState) -> str:
    """Return the sign for a device's state."""
    return _STATE_MARKS[state]


def typical(verified_ms: float | None, typical_ms: float | None) -> str:
    """Return a re-measurement at the typical slow-down, as `typical 0.390`; empty where it differs little."""
    if verified_ms is None or typical_ms is None or abs(typical_ms / verified_ms - 1) <= _SAME_LATENCY:
        return ""
    return f"typical {latency(typical_ms)}"


def verified(verified_ms: float | None, typical_ms: float | None) -> str:
    """Return a re-measurement as it ran and, where that differs, at the typical slow-down."""
    beside = typical(verified_ms, typical_ms)
    return f"{latency(verified_ms)} ({beside})" if beside else latency(verified_ms)


def remarks(verified_ms: float | None, typical_ms: float | None, note: str) -> list[str]:
    """Return the remarks on a decided target, shown after its verdict."""
    beside = typical(verified_ms, typical_ms)
    return [remark for remark in (f"{beside} ms" if beside else "", printable(note)) if remark]


def met_word(target_ms: float | None, target: str = "") -> str:
    """Return the word for a target that is met, and for a given subnet that is compared with none."""
    return "measured" if target_ms is None and not target else "met"


def target_value(target: str, value: float | None, value_high: float | None) -> str:
    """Return what a re-measurement showed of a target of another kind than latency; empty for a latency."""
    kind = other_kind(target)
    if kind is None or value is None:
        return ""
    if kind.kind is TargetKind.ACCURACY:
        return f"{value:.1f} % predicted"
    upper = "" if value_high is None else f" (at most {latency(value_high)})"
    name = f"p{kind.percentile:g} " if kind.kind is TargetKind.PERCENTILE else ""
    return f"{name}{latency(value)} {kind.unit}{upper}"


def other_kind(text: str) -> Target | None:
    """Read the text of a target of another kind than latency; None for a latency, and for one of a newer version."""
    try:
        return Target.parse(text) if text else None
    except UsageError:
        return None


def targets_met(totals: TargetTotals) -> str:
    """Return the totals, as `8 of 12 targets met`, or `2 of 2 subnets measured` where there was no target."""
    if totals.without_target:
        return f"{totals.met} of {count_of(totals.asked, 'subnet')} measured"
    return f"{totals.met} of {count_of(totals.asked, 'target')} met"


def targets_remark(known: int, asked: int, note: str, ended: bool) -> str:
    """Return the remark on all targets of a device setting; empty where its table needs none."""
    if note or known or not asked:
        return printable(note)
    count = count_of(asked, "target")
    return f"{count} asked for, none chosen" if ended else f"{count} asked for, not chosen yet"


def setting_status(status: SettingStatus, *, interrupted: bool) -> str:
    """Return the status of a device setting in words; nothing runs any more in a run that was interrupted."""
    return "not finished" if interrupted and status is SettingStatus.RUNNING else str(status)


def status_counts(statuses: Iterable[SettingStatus], *, interrupted: bool) -> str:
    """Count device settings by status, as `2 finished, 1 failed`, or `1 not finished` in an interrupted run."""
    counts = Counter(statuses)
    return ", ".join(
        f"{counts[status]} {setting_status(status, interrupted=interrupted)}" for status in _STATUSES if counts[status]
    )


def data_quality(quality: DataQuality) -> str:
    """Return the counts of measurements by quality, and the largest slow-down."""
    if not quality.measured:
        return "nothing measured"
    parts = [f"{quality.ok} ok, {quality.noisy} noisy, {quality.slowed} slowed"]
    if quality.largest_slowdown is not None:
        parts.append(f"largest slow-down {quality.largest_slowdown:.2f}x")
    if quality.regimes > 1:
        parts.append(f"{quality.regimes} lasting speeds")
    if quality.unknown_speed:
        parts.append(f"speed unknown in {quality.unknown_speed}")
    return "; ".join(parts)


def first_warnings(warnings: Sequence[str]) -> list[str]:
    """Return the first warnings of many, with a line that counts the others."""
    shown = [printable(warning) for warning in warnings[:_MOST_NAMED]]
    more = len(warnings) - len(shown)
    return [*shown, f"and {count_of(more, 'more warning')} of this kind, see results.json"] if more else shown


def slowed_warning(settings: Iterable[tuple[str, DataQuality]]) -> str:
    """Return the warning about device settings with more than a quarter of slowed measurements; empty without any."""
    slowed = sorted(
        ((label, quality) for label, quality in settings if quality.often_slowed),
        key=lambda pair: (-pair[1].slowed_share, pair[0]),
    )
    if not slowed:
        return ""
    if len(slowed) == 1:
        ((label, quality),) = slowed
        return slowed_setting(label, quality.slowed, quality.measured, quality.largest_slowdown)
    named = [f"{printable(label)} ({quality.slowed} of {quality.measured})" for label, quality in slowed[:_MOST_NAMED]]
    rest = [f"{len(slowed) - len(named)} more"] if len(slowed) > len(named) else []
    places = ", ".join([*named, *rest])
    return f"WARNING: more than a quarter of the measurements slowed down on {len(slowed)} device settings: {places}"


def slowed_setting(label: str, slowed: int, measured: int, largest_slowdown: float | None) -> str:
    """Return the warning about one device setting."""
    most = "" if largest_slowdown is None else f", up to {largest_slowdown:.2f}x"
    return f"WARNING: {slowed} of {measured} measurements slowed down on {printable(label)}{most}"


def slowed_settings(labels: Sequence[str]) -> str:
    """Return the warning about device settings whose counts are not known; empty without any."""
    if not labels:
        return ""
    return f"WARNING: more than a quarter of the measurements slowed down on {printable(', '.join(labels))}"


def predictor_error(error: PredictorError | None, *, short: bool = False) -> str:
    """Return the held-out error with its number of measurements; over too few, only that number."""
    if error is None:
        return "" if short else "not known yet"
    if not error.is_reliable:
        return f"err too few/{error.held_out}" if short else f"too few to tell ({error.held_out} held out)"
    if short:
        return f"err {error.mape_percent:.1f}%/{error.held_out}"
    rank = "" if error.spearman is None else f", rank {error.spearman:.2f}"
    transfer = "; unlike any known device: transfer off" if error.is_unlike_known else ""
    return f"{error.mape_percent:.1f} % on {error.held_out} held out{rank}{transfer}"


def baselines(rows: Iterable[BaselineSnapshot]) -> str:
    """Return the latencies of the user's own networks on a device setting, as `largest 4.00 ms, mine: no room`."""
    return ", ".join(
        printable(row.name) + (f" {latency(row.measured_ms)} ms" if row.measured_ms is not None else _missing(row))
        for row in rows
    )


def _missing(row: BaselineSnapshot) -> str:
    return f": {printable(row.reason)}" if row.reason else ": not measured yet"


def elapsed(seconds: float) -> str:
    """Return seconds as `m:ss`, or `h:mm:ss` from an hour on."""
    whole = max(0, int(seconds))
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def progress(found: RunProgress, *, short: bool = False) -> str:
    """Return progress and time left, as `35 % done, about 4:10 left (3:00 to 6:30)`."""
    share = percent(min(found.done, 0.99) if found.left_s else found.done)
    if short:
        return f"{share}, {elapsed(found.left_s)} left"
    between = f"{elapsed(found.least_left_s)} to {elapsed(found.most_left_s)}"
    return f"{share} done, about {elapsed(found.left_s)} left ({between})"


def percent(share: float) -> str:
    """Return a share in [0, 1] as whole percent."""
    return f"{share * 100:.0f} %"


def count_of(number: int, noun: str) -> str:
    """Return a number with its noun, as `1 device` or `2 devices`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
