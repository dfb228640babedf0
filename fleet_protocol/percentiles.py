"""Percentiles of run times, with confidence intervals that hold for every distribution.

The number of independent run times at most as long as the true percentile p is binomial with n and p. So the interval
from the l-th to the u-th smallest time covers the true percentile with a probability that depends on the ranks alone.
Source: Conover, Practical Nonparametric Statistics, 3rd ed., 3.2. Run times that depend on each other, as those of a
device whose speed wanders do, make the true coverage smaller.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from fleetnas.fleet_protocol.messages import PercentileTime

#: Confidence of the intervals.
CONFIDENCE = 0.95
#: Timed runs that decide a percentile p: these numbers times p / (1 - p). With the first the interval's upper end lies
#: about half of the way from the percentile to the slowest run, as shares of runs, with the second three quarters. The
#: second is for high percentiles, where the first would take more runs than the last number.
_RUNS_FACTOR, _LEAST_FACTOR, _LEAST_RUNS, _MANY_RUNS = 15.0, 7.0, 50, 1000
#: Ranks further than this many standard deviations of the binomial from its mean are not looked at.
_REACH_SIGMAS = 6.0


class Ranks(NamedTuple):
    """Ranks of an interval's ends among the ascending run times, from 1 on, and the probability that it covers."""

    low: int
    high: int
    coverage: float


def runs_needed(percentile: float) -> int:
    """Return the timed runs that a decision on a percentile takes: 285 for p95, 1000 for p99, 6993 for p99.9."""
    odds = percentile / (100.0 - percentile)
    runs = max(_LEAST_FACTOR * odds, min(_RUNS_FACTOR * odds, _MANY_RUNS))
    return max(_LEAST_RUNS, math.ceil(round(runs, 6)))


@lru_cache(maxsize=256)
def interval_ranks(runs: int, percentile: float) -> Ranks | None:
    """Return the ranks of the shortest interval that covers the percentile at `CONFIDENCE`; None: too few runs.

    Of intervals over equally many ranks the one whose coverage is nearest to the stated confidence is taken.
    """
    if runs < 2:
        return None
    share = percentile / 100.0
    middle, reach = runs * share, _REACH_SIGMAS * math.sqrt(runs * share * (1.0 - share)) + 2.0
    first, last = max(0, math.floor(middle - reach)), min(runs, math.ceil(middle + reach))
    at_most = [0.0]  # probability that fewer than `first + place` runs are at most as long
    for count in range(first, last + 1):
        at_most.append(at_most[-1] + _binomial(runs, count, share))

    def below(rank: int) -> float:
        return at_most[min(max(rank - first, 0), len(at_most) - 1)]

    # The interval from rank to rank covers where at least `low` and fewer than `high` runs are at most as long.
    found: Ranks | None = None
    high = max(1, first) + 1
    for low in range(max(1, first), min(runs, last + 1)):
        high = max(high, low + 1)
        while high < runs and below(high) - below(low) < CONFIDENCE:
            high += 1
        coverage = below(high) - below(low)
        if coverage < CONFIDENCE:
            break
        if found is None or (high - low, coverage) < (found.high - found.low, found.coverage):
            found = Ranks(low, high, coverage)
    return found


def planned_percentile(percentile: float) -> float:
    """Return the percentile at which the upper end of a decisive interval is expected, percent."""
    runs = runs_needed(percentile)
    ranks = interval_ranks(runs, percentile)
    assert ranks is not None
    return min(round(100.0 * ranks.high / (runs + 1.0), 3), 99.99)


def percentile_times(times_ms: Sequence[float], percentiles: Sequence[float]) -> tuple[PercentileTime, ...]:
    """Return percentiles of run times, ms, each with its interval where the runs are enough for one."""
    ordered = sorted(times_ms)
    found = []
    for percentile in percentiles if ordered else ():
        ranks = interval_ranks(len(ordered), percentile)
        found.append(
            PercentileTime(
                percentile=percentile,
                value_ms=_quantile(ordered, percentile / 100.0),
                low_ms=ordered[ranks.low - 1] if ranks is not None else None,
                high_ms=ordered[ranks.high - 1] if ranks is not None else None,
                runs=len(ordered),
            )
        )
    return tuple(found)


def pooled_times(sessions: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """Pool the run times of several sessions, as many of each: every session has the same weight."""
    if len(sessions) == 1:
        return tuple(sessions[0])
    count = min(map(len, sessions), default=0)
    return tuple(times[place * len(times) // count] for times in sessions for place in range(count))


def _quantile(ordered: Sequence[float], share: float) -> float:
    """Interpolate the quantile of ascending values; about median-unbiased (Hyndman and Fan 1996, definition 8)."""
    position = min(max((len(ordered) + 1 / 3) * share + 1 / 3 - 1.0, 0.0), len(ordered) - 1.0)
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])


def _binomial(runs: int, count: int, share: float) -> float:
    logarithm = math.lgamma(runs + 1) - math.lgamma(count + 1) - math.lgamma(runs - count + 1)
    return math.exp(logarithm + count * math.log(share) + (runs - count) * math.log1p(-share))
