"""Run a model for minutes in the killable child, and summarise the latency of its windows.

A phone, or a board without a fan, is fast while it is cold. A camera that runs all day has the latency of the hot
device, and the faster model of the first minute may be the slower one in the thirtieth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from types import MappingProxyType

from fleetnas.agent.measuring.bench import not_measured
from fleetnas.agent.measuring.host_lock import default_host_lock_path
from fleetnas.agent.measuring.messages import (
    FailedReply,
    LoadedReply,
    PhaseReply,
    Reply,
    SustainedOrder,
    UnreadyReply,
    WindowReply,
)
from fleetnas.agent.measuring.worker import Worker, child_command, replies_of
from fleetnas.agent.runtimes.input_shapes import Shape
from fleetnas.fleet_protocol.errors import FleetnasError
from fleetnas.fleet_protocol.messages import RuntimeSetting

#: The beginning of a run, s, and its end, which are compared; of a short run each is a third.
BEGINNING_S = 60.0
END_S = 300.0
#: A window that begins by then is an early one.
_EARLY_S = 60.0
#: A run is steady from where on its windows stay this close to its end.
STEADY_WITHIN = 0.05
#: Fewer windows than this do not tell whether a run became steady.
MIN_WINDOWS_FOR_STEADY = 6
#: Single windows that something disturbed do not count: each is taken as the median of itself and its neighbours.
_SMOOTHED = 2
#: Beyond two windows' length without a reply: loading a model, building an accelerator's engine.
_SLACK_S = 600.0


@dataclass
class SustainedRun:
    """Result of one run; windows in order of time."""

    model: LoadedReply | None = None
    windows: list[WindowReply] = field(default_factory=list)
    #: Ctrl-C ended it.
    interrupted: bool = False
    #: Why it ended early; empty if the user or the time ended it.
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Summary:
    """Summary of the windows of one run. Latencies are medians of windows' medians, as they ran."""

    beginning_s: float
    beginning_ms: float
    end_s: float
    end_ms: float
    #: Latency of the end over that of the beginning.
    end_slowdown: float
    #: The fastest window of the first minute, which `slowdown` of a window refers to.
    fastest_early_ms: float
    slowest_ms: float
    slowest_slowdown: float
    #: From here on the latency stayed within `STEADY_WITHIN` of the end's; None: it did not become steady.
    steady_from_s: float | None
    #: Windows at whose end the device reported throttling; None where it does not tell.
    throttled_windows: int | None


def run_sustained(
    model: Path,
    setting: RuntimeSetting,
    total_s: float,
    window_s: float,
    on_reply: Callable[[PhaseReply | LoadedReply | WindowReply], None],
    input_shapes: Mapping[str, Shape] = MappingProxyType({}),
    *,
    engine_folder: Path | None = None,
) -> SustainedRun:
    """Run a model file in the killable child for `total_s` s, holding the host's lock throughout.

    `on_reply` is called with every reply but the final one. Ctrl-C and failures end the run early and keep its windows;
    before the first window they are raised.
    """
    run = SustainedRun()
    worker = Worker(child_command(default_host_lock_path(), engine_folder=engine_folder))
    limit_s = 2 * window_s + _SLACK_S
    try:
        order = SustainedOrder(
            model_path=str(model),
            input_shapes=dict(input_shapes),
            setting=setting,
            total_s=total_s,
            window_s=window_s,
        )
        worker.submit(order)
        run.failure = f"the model gave no window within {limit_s:g} s"
        for reply in replies_of(worker, limit_s):
            if isinstance(reply, WindowReply):
                run.windows.append(reply)
            elif isinstance(reply, LoadedReply):
                run.model = reply
            elif not isinstance(reply, PhaseReply):
                if isinstance(reply, FailedReply) and not run.windows:
                    raise not_measured(model, reply)
                run.failure = _failure_of(reply)
                continue
            on_reply(reply)
    except KeyboardInterrupt:
        if not run.windows:
            raise
        run.interrupted, run.failure = True, ""
    finally:
        worker.kill()
    if not run.windows:
        raise FleetnasError(f"{model.name} was not measured: {run.failure or 'its time ended before the first window'}")
    return run


def _failure_of(reply: Reply) -> str:
    """Return why the order ended before its time; empty if it did not."""
    if isinstance(reply, FailedReply):
        return f"{reply.reason}: {reply.detail}"
    return reply.reason if isinstance(reply, UnreadyReply) else ""


def slowdown(window: WindowReply, windows: Sequence[WindowReply]) -> float:
    """Return the latency of a window over that of the fastest early one of `windows`, which are in order of time."""
    return window.median_ms / _fastest_early_ms(windows)


def summarise(windows: Sequence[WindowReply]) -> Summary:
    """Summarise at least one window."""
    total_s = windows[-1].end_s
    end_s = min(END_S, total_s / 3)
    beginning_s = min(BEGINNING_S, total_s / 3)
    beginning_ms = median(_medians_before(windows, beginning_s))
    end_ms = median(window.median_ms for window in windows if window.end_s > total_s - end_s)
    fastest_early_ms = _fastest_early_ms(windows)
    slowest_ms = max(window.median_ms for window in windows)
    reported = [window.conditions.throttled for window in windows if window.conditions.throttled is not None]
    return Summary(
        beginning_s=beginning_s,
        beginning_ms=beginning_ms,
        end_s=end_s,
        end_ms=end_ms,
        end_slowdown=end_ms / beginning_ms,
        fastest_early_ms=fastest_early_ms,
        slowest_ms=slowest_ms,
        slowest_slowdown=slowest_ms / fastest_early_ms,
        steady_from_s=_steady_from_s(windows, end_ms, total_s - end_s),
        throttled_windows=sum(reported) if reported else None,
    )


def _medians_before(windows: Sequence[WindowReply], limit_s: float) -> list[float]:
    """Return the medians of the first window, and of all others that begin before `limit_s`."""
    return [window.median_ms for number, window in enumerate(windows) if number == 0 or window.begin_s < limit_s]


def _fastest_early_ms(windows: Sequence[WindowReply]) -> float:
    return min(_medians_before(windows, _EARLY_S))


def _steady_from_s(windows: Sequence[WindowReply], level_ms: float, latest_s: float) -> float | None:
    """Return when the last stretch near `level_ms` begins, in s; None if that is later than `latest_s`."""
    if len(windows) < MIN_WINDOWS_FOR_STEADY:
        return None
    begin_s: float | None = None
    for number in reversed(range(len(windows))):
        around = windows[max(0, number - _SMOOTHED) : number + _SMOOTHED + 1]
        if abs(median(window.median_ms for window in around) / level_ms - 1.0) > STEADY_WITHIN:
            break
        begin_s = windows[number].begin_s
    return begin_s if begin_s is not None and begin_s <= latest_s else None
