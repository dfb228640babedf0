"""Censored measurements (only an upper bound is known) for a predictor with normal noise."""

from __future__ import annotations

import math

from fleetnas.coordinator.predictors.bayesian import BayesianPredictor
from fleetnas.coordinator.predictors.prior import Floats

#: A bound this many standard deviations above the prediction carries no information.
_FAR_SIGMAS = 2.0
#: The approximating measurement is not moved below this share of the bound, nor made more certain than this, relative.
_LEAST_SHARE, _LEAST_NOISE = 0.3, 0.02


def learn_upper_bounds(predictor: BayesianPredictor, features: Floats, bounds_ms: Floats) -> None:
    """Update a predictor: the latencies of architectures with `features` (k, F) are at most `bounds_ms` (k,).

    Each bound is replaced, in the order given, by the measurement with normal noise that leaves the predictor with the
    mean and variance of its own prediction cut off at the bound (assumed-density filtering; Minka, "Expectation
    Propagation for approximate Bayesian inference", UAI 2001). Give the bounds in a canonical order to make the result
    a function of the set of bounds.
    """
    for row, bound_ms in zip(features, bounds_ms.tolist(), strict=True):
        (mean,), (deviation,) = predictor.predict(row[None], include_noise=True)
        found = _as_measurement(float(mean), float(deviation), bound_ms)
        if found is not None:
            latency_ms, noise_ms = found
            predictor.update(row, latency_ms, noise_ms)


def _as_measurement(mean: float, deviation: float, bound_ms: float) -> tuple[float, float] | None:
    """Latency and noise (ms) whose product with N(mean, deviation^2) has the moments of the latter below the bound."""
    z = (bound_ms - mean) / deviation
    if z > _FAR_SIGMAS:
        return None
    hazard = (
        math.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi) / (0.5 * math.erfc(-z / math.sqrt(2.0))) if z > -8 else -z
    )
    variance = deviation**2
    kept = max(1.0 - hazard * (z + hazard), 1e-3)
    cut_mean, cut_variance = mean - deviation * hazard, variance * kept
    noise_variance = 1.0 / (1.0 / cut_variance - 1.0 / variance)
    latency_ms = noise_variance * (cut_mean / cut_variance - mean / variance)
    least_ms = _LEAST_SHARE * bound_ms
    return min(max(latency_ms, least_ms), bound_ms), max(math.sqrt(noise_variance), _LEAST_NOISE * bound_ms)
