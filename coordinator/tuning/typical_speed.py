"""Typical slow-down of a device in a run: it turns latencies at undisturbed speed into those that targets mean.

Contention for memory slows large subnets more than small ones, so the slow-down may depend on the latency itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

#: A slope counts as far as the ranks of latency and slow-down agree by more than this many standard deviations of
#: Kendall's tau, and is shrunk the more the nearer they are to it. With a hard threshold at 3 the typical slow-down was
#: off by 6.4 % (root mean square) under a mixture of disturbances, with this by 4.5 %; under contention, 3.5 and 3.2 %.
_SLOPE_SIGMAS = 2.0
#: Slow-downs needed for a slope at all; of fewer than the second, only their median counts.
_LEAST_FOR_SLOPE = 10
#: Bounds of the slope d log(slow-down) / d log(latency).
_STEEPEST = 0.5
#: What was seen stands for at most this share of the run: it goes on. And for at least this many independent moments.
_MOST_COVERAGE, _LEAST_INDEPENDENT = 0.5, 4.0
#: Measurements up to which the places of their pairs are kept: 64 KiB for the last.
_MOST_CACHED_PAIRS_OF = 64
#: Standard error of a median over the scaled median absolute deviation of a normal sample.
_MEDIAN_ERROR = 1.2533 * 1.4826


@dataclass(frozen=True)
class TypicalSpeed:
    """The typical slow-down s of a subnet of undisturbed latency u: log s = `level` + `slope` (log u - `centre`)."""

    level: float = 0.0
    slope: float = 0.0
    centre: float = 0.0
    error: float = 0.0
    """Relative standard error of the typical slow-down."""

    @classmethod
    def of(
        cls,
        undisturbed_ms: Floats,
        slowdown: Floats,
        ended_s: Floats | None = None,
        weights: Floats | None = None,
        coverage: float = 1.0,
    ) -> TypicalSpeed:
        """Estimate the weighted median of measurements, and its dependence on latency where that is certain.

        Args:
            undisturbed_ms: latencies at undisturbed speed, ms, (n,).
            slowdown: latency as it ran over that, (n,).
            ended_s: time at which each measurement ended, seconds, (n,). A speed that changes slowly is seen more
                precisely than a random one: its error is that of successive differences, as of any systematic sample
                (Wolter, Introduction to Variance Estimation, 8).
            weights: of the measurements, (n,); None: all alike.
            coverage: share of the run that these measurements stand for: the rest may have run at any speed.
        """
        if not len(slowdown):
            return cls()
        ended = np.zeros(len(slowdown)) if ended_s is None else ended_s
        # In an order of their own: not even rounding depends on the order of arrival.
        order = np.lexsort((slowdown, undisturbed_ms, ended))
        x, y = np.log(undisturbed_ms[order]), np.log(slowdown[order])
        weight = np.ones(len(y)) if weights is None else weights[order]
        centre = median(x)
        slope = _slope(x, y)
        rest = y - slope * (x - centre)
        level = _weighted_median(rest, weight)
        deviation = _weighted_median(np.abs(rest - level), weight)
        if ended_s is not None and len(y) > 2:
            steps = np.abs(rest[1:] - rest[:-1]) / math.sqrt(2.0)
            error = _error(len(y), min(deviation, median(steps)), deviation, coverage)
        else:
            error = _MEDIAN_ERROR * deviation / math.sqrt(len(y))
        return cls(level, slope, centre, error)

    @property
    def typical_slowdown(self) -> float:
        """Typical slow-down of a subnet of median latency among the measured ones."""
        return math.exp(self.level)

    def slowdown(self, undisturbed_ms: float) -> float:
        """Return the typical slow-down of a subnet with this latency at undisturbed speed, ms."""
        return math.exp(self.level + self.slope * (math.log(undisturbed_ms) - self.centre))

    def typical_ms(self, undisturbed_ms: Floats) -> Floats:
        """Return latencies in this run, ms (n,), of subnets with these latencies at undisturbed speed, ms (n,)."""
        found: Floats = undisturbed_ms * np.exp(self.level + self.slope * (np.log(undisturbed_ms) - self.centre))
        return found

    def undisturbed_of(self, typical_ms: Floats) -> Floats:
        """Return latencies at undisturbed speed, ms (n,), that typically show as `typical_ms` (n,)."""
        found: Floats = np.exp((np.log(typical_ms) - self.level + self.slope * self.centre) / (1.0 + self.slope))
        return found


def _error(count: int, seen: float, deviation: float, coverage: float) -> float:
    """Return the standard error of a median of `count` measurements in a row, relative.

    Of the time that was seen only `seen`, the deviation between successive ones, is uncertain. The rest of the time may
    be anywhere within `deviation`, and what was measured tells of it as if there were fewer, independent measurements:
    their number is that of an autoregression of first order, whose correlation follows from the two deviations (von
    Neumann's ratio).
    """
    of_seen = seen / math.sqrt(count)
    ratio = (seen / deviation) ** 2 if deviation > 0.0 else 1.0
    independent = max(count * ratio / (2.0 - ratio), _LEAST_INDEPENDENT)
    unseen = 1.0 - min(coverage, _MOST_COVERAGE)
    return _MEDIAN_ERROR * (of_seen + unseen * max(deviation / math.sqrt(independent) - of_seen, 0.0))


def median(values: Floats) -> float:
    """Return the median of (n,) finite values: `numpy.median` takes ten times as long for a few."""
    in_order, half = np.sort(values), len(values) // 2
    return float(in_order[half] if len(values) % 2 else (in_order[half - 1] + in_order[half]) / 2.0)


@cache
def _pairs(count: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the places of all pairs among `count` values, first and second, (pairs,) each."""
    return np.triu_indices(count, 1)


def _weighted_median(values: Floats, weights: Floats) -> float:
    """Return the value with half of the weight on either side; between two of these, their mean."""
    order = np.argsort(values, kind="stable")
    share = np.cumsum(weights[order])
    low = int(np.searchsorted(share, share[-1] * (0.5 - 1e-9)))
    high = int(np.searchsorted(share, share[-1] * (0.5 + 1e-9)))
    return float((values[order[low]] + values[order[min(high, len(values) - 1)]]) / 2.0)


def _slope(x: Floats, y: Floats) -> float:
    """Return Theil and Sen's slope, shrunk as James and Stein do; 0 where Kendall's tau does not tell it from none."""
    n = len(x)
    if n < _LEAST_FOR_SLOPE:
        return 0.0
    first, second = _pairs(n) if n <= _MOST_CACHED_PAIRS_OF else np.triu_indices(n, 1)
    dx, dy = x[second] - x[first], y[second] - y[first]
    apart = dx > 1e-9
    agreement = float(np.sign(dy[apart]).sum())
    sigmas = abs(agreement) / math.sqrt(n * (n - 1) * (2 * n + 5) / 18.0)
    if sigmas <= _SLOPE_SIGMAS:
        return 0.0
    share = 1.0 - (_SLOPE_SIGMAS / sigmas) ** 2
    return share * min(max(median(dy[apart] / dx[apart]), -_STEEPEST), _STEEPEST)
