"""Say how many times as fast one network is as another, no more precisely than both were measured."""

from __future__ import annotations

import math

#: Latencies that differ by less are told as equal, and those that differ by at most the second one may be.
_EQUAL, _NEARLY_EQUAL = 1.025, 1.1
#: The figure itself is told where it is at most this much larger than the lower end of its interval, relative.
_SURE = 0.1
#: From this ratio on no decimals are shown.
_MANY = 10.0


def speedup_words(speedup: float, low: float | None, high: float | None) -> str:
    """Return a speed-up in words: `2.1x faster`, `at least 1.4x slower`, `as fast`, `not clearly faster or slower`.

    `low` and `high` are its 95 % interval. A `low` of None: the interval is not known; a `high` of None: it has no end.
    """
    low = speedup if low is None else low
    high = (speedup if low == speedup else math.inf) if high is None else high
    if low <= 1 <= high and not (low >= 1 / _NEARLY_EQUAL and high <= _NEARLY_EQUAL):
        return "not clearly faster or slower"
    factor, sure = (speedup, low) if speedup > 1 else (1 / speedup, 1 / high)
    if factor < _EQUAL or low <= 1 <= high:
        return "as fast"
    comparative = "faster" if speedup > 1 else "slower"
    if sure >= (1 - _SURE) * factor:
        return f"{factor:.{_decimals(factor)}f}x {comparative}"
    if sure < _EQUAL:
        return "not clearly faster or slower"
    decimals = _decimals(sure)
    rounded_down = math.floor(sure * 10**decimals) / 10**decimals  # "at least" must hold for what is told
    return f"at least {rounded_down:.{decimals}f}x {comparative}"


def _decimals(ratio: float) -> int:
    return 0 if ratio >= _MANY else 1 if ratio >= _NEARLY_EQUAL else 2
