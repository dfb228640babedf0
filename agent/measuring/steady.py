"""Warm a device up until its speed is steady: the speed that it has all day, not that of its first two minutes."""

from __future__ import annotations

import statistics
from collections.abc import Callable

#: Length of a window, s, and how many in a row have to agree within how much: with each other, and in their median with
#: those this many windows before, as heat that rises slowly hardly shows within a quarter of a minute.
WINDOW_S = 5.0
_AGREEING, _BEFORE, _TOLERANCE = 3, 6, 0.02
#: At least and at most this long, s.
LEAST_S, MOST_S = 30.0, 600.0


def warm_until_steady(
    window: Callable[[], tuple[float, float]],
    clock: Callable[[], float],
    tell: Callable[[float], None] = lambda fraction: None,
) -> tuple[float, bool]:
    """Run windows of continuous inference until they agree; time inside inference, s, and whether they did.

    `window` runs for `WINDOW_S` and gives its latency (any unit) and its time inside inference, s. `tell` is told the
    fraction of the longest time between windows.
    """
    begin = clock()
    latencies: list[float] = []
    spent_s = 0.0
    while True:
        latency, inside_s = window()
        spent_s += inside_s
        latencies.append(latency)
        elapsed_s = clock() - begin
        if elapsed_s >= LEAST_S and _is_steady(latencies):
            return spent_s, True
        if elapsed_s >= MOST_S:
            return spent_s, False
        tell(min(1.0, elapsed_s / MOST_S))


def _is_steady(latencies: list[float]) -> bool:
    last = latencies[-_AGREEING:]
    begin = max(0, len(latencies) - _AGREEING - _BEFORE)
    before = latencies[begin : begin + _AGREEING]
    if len(last) < _AGREEING or max(last) > (1 + _TOLERANCE) * min(last):
        return False
    return abs(statistics.median(last) / statistics.median(before) - 1) <= _TOLERANCE
