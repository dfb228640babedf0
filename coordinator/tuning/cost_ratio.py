"""The ratio of a cost, such as the 95th percentile or the energy, to the median latency on one device setting.

The ratio changes with the size of a subnet: stalls of a fixed length weigh less on a slow one, and a large one draws
more power. So its logarithm is a line in the logarithm of the latency, by Bayesian linear regression with a slope that
is small beforehand; what single subnets differ by is its scatter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

#: Standard deviations before any measurement: of the slope, and of single subnets around the line. The latter counts as
#: this many measurements.
_SLOPE, _SCATTER, _SCATTER_WEIGHT = 0.15, 0.05, 3.0
#: Bounds of the slope: a cost grows with the latency in any case.
_MOST_SLOPE = 0.6


@dataclass(frozen=True)
class CostRatio:
    """`log(cost / latency) = level + slope * (log(latency) - centre)`, give or take `scatter`."""

    level: float
    slope: float
    centre: float
    scatter: float

    @classmethod
    def learned(cls, points: Sequence[tuple[float, float]]) -> CostRatio:
        """Learn from (latency in ms, cost) of measurements, at least one; sorted, so that rounding is the same."""
        sizes = [math.log(latency_ms) for latency_ms, _ in points]
        logs = [math.log(cost / latency_ms) for latency_ms, cost in points]
        count = len(points)
        centre, level = math.fsum(sizes) / count, math.fsum(logs) / count
        across = math.fsum((size - centre) ** 2 for size in sizes)
        along = math.fsum((size - centre) * (log - level) for size, log in zip(sizes, logs, strict=True))
        scatter = _SCATTER
        slope = 0.0
        for _ in range(3):  # slope and scatter depend on each other
            slope = along / (across + (scatter / _SLOPE) ** 2)
            slope = min(max(slope, -_MOST_SLOPE), _MOST_SLOPE)
            beside = math.fsum(
                (log - level - slope * (size - centre)) ** 2 for size, log in zip(sizes, logs, strict=True)
            )
            scatter = math.sqrt((beside + _SCATTER_WEIGHT * _SCATTER**2) / (max(count - 2, 0) + _SCATTER_WEIGHT))
        return cls(level, slope, centre, scatter)

    def costs(self, latency_ms: Floats, sigmas: float) -> Floats:
        """Return the costs of subnets with these latencies, ms, (n,), this many deviations above the expected."""
        sizes = np.log(np.maximum(latency_ms, 1e-12))
        found: Floats = np.exp(sizes + self.level + self.slope * (sizes - self.centre) + sigmas * self.scatter)
        return found

    def latency_ms(self, cost: float, sigmas: float) -> float:
        """Return the latency, ms, of a subnet whose cost is this one, this many deviations above the expected."""
        log = math.log(cost) - sigmas * self.scatter - self.level + self.slope * self.centre
        return math.exp(log / (1.0 + self.slope))
