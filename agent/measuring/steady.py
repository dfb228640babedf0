"""Warm a device up until its speed is steady: its speed all day, not that of its first two minutes."""

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
    report: Callable[[float], None] = lambda fraction: None,
) -> tuple[float, bool]:
    """Run windows of continuous inference until they agree; return the time inside inference, s, and whether they do.

    `window` runs for `WINDOW_S` s and returns its latency (in any unit) and its time inside inference, in s. `report`
    is called between windows with the elapsed fraction of the longest time.
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
        report(min(1.0, elapsed_s / MOST_S))


def _is_steady(latencies: list[float]) -> bool:
    last = latencies[-_AGREEING:]
    begin = max(0, len(latencies) - _AGREEING - _BEFORE)
    before = latencies[begin : begin + _AGREEING]
    if len(last) < _AGREEING or max(last) > (1 + _TOLERANCE) * min(last):
        return False
    return abs(statistics.median(last) / statistics.median(before) - 1) <= _TOLERANCE
