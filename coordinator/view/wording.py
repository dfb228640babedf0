"""How figures and states are written, the same in every view."""

from __future__ import annotations

from coordinator.view.snapshot import DeviceState, PredictorError, ProgressSnapshot, TargetSnapshot

_STATE_MARKS: dict[DeviceState, str] = {
    "offline": "○",
    "fetching": "↓",
    "measuring": "●",
    "waiting": "◌",
    "verifying": "◆",
    "done": "✓",
    "lost": "✗",
    "idle": "·",
}
_CONTROL = dict.fromkeys((*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029), " ")


def printable(text: str) -> str:
    """`text` on one line and without control characters: what a device sends must not steer the terminal."""
    return text.translate(_CONTROL)


def latency(value_ms: float | None) -> str:
    """Three significant digits, or a dash."""
    if value_ms is None:
        return "–"
    if value_ms < 1:
        return f"{value_ms:.3f}"
    return f"{value_ms:.2f}" if value_ms < 10 else f"{value_ms:.1f}" if value_ms < 1000 else f"{value_ms:.0f}"


def target(value_ms: float) -> str:
    """A target as the user gave it, without trailing zeros."""
    return f"{value_ms:.4g}" if value_ms < 1000 else f"{value_ms:.0f}"


def accuracy(share: float | None) -> str:
    """A share in [0, 1] as percent, or a dash."""
    return "–" if share is None else f"{share * 100:.1f} %"


def target_accuracy(snapshot: TargetSnapshot) -> str:
    """Evaluated accuracy, or the predicted one marked with `~`."""
    if snapshot.evaluated_accuracy is not None:
        return accuracy(snapshot.evaluated_accuracy)
    return "–" if snapshot.accuracy is None else f"~{accuracy(snapshot.accuracy)}"


def target_status(snapshot: TargetSnapshot) -> str:
    """One or a few words on where a target stands; a result only once it is verified."""
    if snapshot.met is not None:
        word = "met" if snapshot.met else "missed"
        return word if snapshot.met or not snapshot.reason else printable(snapshot.reason)
    if snapshot.reason:
        return printable(snapshot.reason)
    if snapshot.measured_ms is not None:
        return "measured"
    return "predicted" if snapshot.predicted_ms is not None else "searching"


def target_mark(snapshot: TargetSnapshot) -> str:
    """A sign beside the word: colour is never the only carrier."""
    return "·" if snapshot.met is None else "✓" if snapshot.met else "✗"


def state_mark(state: DeviceState) -> str:
    """A sign for a device's state."""
    return _STATE_MARKS[state]


def predictor_error(error: PredictorError | None) -> str:
    """The held-out error, never without how many measurements it is taken over."""
    if error is None:
        return "not known yet"
    rank = "" if error.spearman is None else f", rank {error.spearman:.2f}"
    return f"{error.mape_percent:.1f} % on {error.held_out} held out{rank}"


def elapsed(seconds: float) -> str:
    """`m:ss`, or `h:mm:ss` from an hour on."""
    whole = max(0, int(seconds))
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def byte_count(size: float) -> str:
    """Decimal kilobytes or megabytes."""
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.0f} KB"


def amount(progress: ProgressSnapshot) -> str:
    """How far something is, in its own unit."""
    if progress.unit == "bytes":
        done = byte_count(progress.done)
        return done if progress.total is None else f"{done} of {byte_count(progress.total)}"
    if not progress.unit:
        return "" if progress.fraction is None else f"{progress.fraction * 100:.0f} %"
    total = "" if progress.total is None else f"/{progress.total:g}"
    return f"{progress.done:g}{total} {progress.unit}"


def count_of(number: int, noun: str) -> str:
    """`1 device`, `2 devices`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
