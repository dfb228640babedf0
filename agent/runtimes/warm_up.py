"""Run a model until its latency no longer falls: caches are filled, clocks are up, what is compiled late is compiled.

LiteRT's `benchmark_model` warms up for half a second whatever the model does. Most models are steady after some ten
milliseconds, which counts where a device measures hundreds of them. A device that is equally slow for longer than four
windows and then becomes faster is not recognised; a protocol's warm-up runs cover that where it is known.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from fleetnas.fleet_protocol.messages import MeasurementProtocol

#: A window lasts at least this long, ns, and one inference.
_WINDOW_NS = 10_000_000
#: The device is steady after this many windows in a row none of which was faster by more than this than those before.
_STEADY_WINDOWS, _TOLERANCE = 3, 0.01


@dataclass(frozen=True, slots=True)
class WarmUp:
    """A finished warm-up; all times in ns."""

    spent_ns: int
    #: Median time per inference of the later half of the runs.
    inference_ns: float
    runs: int
    #: Whether it ended because the latency was steady.
    steady: bool


@dataclass
class Falling:
    """Follows the latency of consecutive windows, until it no longer falls.

    A slow ramp is followed as well: a window is compared with the last one that was clearly faster than all before it,
    so that small falls add up.
    """

    _fastest: float = float("inf")
    _since: int = field(default=-1)

    def add(self, low: float) -> bool:
        """Take the low quantile of the next window, in any unit; return whether the latency is steady."""
        if low < (1 - _TOLERANCE) * self._fastest:
            self._fastest, self._since = low, 0
        else:
            self._since += 1
        return self._since >= _STEADY_WINDOWS


def warm_up(run: Callable[[], object], protocol: MeasurementProtocol, clock_ns: Callable[[], int]) -> WarmUp:
    """Run until the latency no longer falls: for the protocol's warm-up runs at least, its warm-up time at most.

    A model so slow that its warm-up runs take longer than the warm-up time ends with these runs.
    """
    limit_ns, least = round(protocol.warmup_s * 1e9), max(1, protocol.warmup_runs)
    falling, steady = Falling(), False
    runs_ns: list[int] = []
    first_of_window = 0
    begin = window_begin = clock_ns()
    while not (len(runs_ns) >= least and (steady or window_begin - begin >= limit_ns)):
        start = clock_ns()
        run()
        end = clock_ns()
        runs_ns.append(max(1, end - start))
        if end - window_begin >= _WINDOW_NS or end - begin >= limit_ns:
            window = sorted(runs_ns[first_of_window:])
            steady = falling.add(window[len(window) // 4]) or steady
            first_of_window, window_begin = len(runs_ns), end
    settled = sorted(runs_ns[len(runs_ns) // 2 :])
    middle = len(settled) // 2
    inference_ns = settled[middle] if len(settled) % 2 else (settled[middle - 1] + settled[middle]) / 2
    return WarmUp(sum(runs_ns), inference_ns, len(runs_ns), steady)
