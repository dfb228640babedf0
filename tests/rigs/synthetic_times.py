"""Distributions of run times whose percentiles are known exactly: normal, lognormal, bimodal."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
KINDS = ("normal", "lognormal", "bimodal")
_STANDARD = NormalDist()


@dataclass(frozen=True)
class SyntheticTimes:
    """Run times of one made-up device and subnet, ms."""

    kind: str
    centre_ms: float
    spread: float
    """Relative standard deviation; of the logarithm where lognormal."""
    stalled: float
    """Bimodal: share of stalled runs."""
    stall: float
    """Bimodal: centre of the stalled runs over that of the others."""

    @classmethod
    def random(cls, kind: str, rng: np.random.Generator) -> SyntheticTimes:
        spread = float(rng.uniform(0.005, 0.15))
        stall = 1.0 + spread * float(rng.uniform(2.0, 12.0))
        return cls(kind, float(rng.lognormal(3.0, 1.0)), spread, float(rng.uniform(0.01, 0.4)), stall)

    def draw(self, count: int, rng: np.random.Generator) -> Floats:
        normal = rng.normal(0.0, self.spread, count)
        if self.kind == "lognormal":
            return self.centre_ms * np.exp(normal)
        centre = np.where(rng.random(count) < self.stalled, self.stall, 1.0) if self.kind == "bimodal" else 1.0
        return self.centre_ms * (centre + normal)

    def true_percentile_ms(self, percentile: float) -> float:
        share = percentile / 100.0
        if self.kind == "lognormal":
            return self.centre_ms * math.exp(self.spread * _STANDARD.inv_cdf(share))
        if self.kind == "normal":
            return self.centre_ms * (1.0 + self.spread * _STANDARD.inv_cdf(share))
        low, high = 1.0 - 10.0 * self.spread, self.stall + 10.0 * self.spread
        for _ in range(200):
            middle = (low + high) / 2.0
            low, high = (middle, high) if self._share_below(middle) < share else (low, middle)
        return self.centre_ms * low

    def _share_below(self, value: float) -> float:
        one = _STANDARD.cdf((value - 1.0) / self.spread)
        return (1.0 - self.stalled) * one + self.stalled * _STANDARD.cdf((value - self.stall) / self.spread)


@dataclass(frozen=True)
class Coverage:
    """Shares of distributions, in percent."""

    covered: float
    """The true percentile is within the interval."""
    above: float
    """The true percentile is above the interval: a target between them would be called met, and is not."""


def coverage_of(percentile: float, distributions: int, seed: int = 0) -> Coverage:
    """Take one interval on each of `distributions` distributions, as many of each kind, and the runs that decide it."""
    from fleetnas.fleet_protocol.percentiles import percentile_times, runs_needed

    covered = above = 0
    for number in range(distributions):
        rng = np.random.default_rng([seed, number])
        times = SyntheticTimes.random(KINDS[number % len(KINDS)], rng)
        (found,) = percentile_times(times.draw(runs_needed(percentile), rng).tolist(), [percentile])
        truth = times.true_percentile_ms(percentile)
        assert found.low_ms is not None
        assert found.high_ms is not None
        covered += found.low_ms <= truth <= found.high_ms
        above += truth > found.high_ms
    return Coverage(100.0 * covered / distributions, 100.0 * above / distributions)
