"""Learning a prior by its definition: nothing is shared, every sum is taken anew, every measurement left out alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fleetnas.coordinator.predictors.device_fit import MeasuredDevice
from fleetnas.coordinator.predictors.posterior import outlier_weight
from fleetnas.coordinator.predictors.prior import Floats, Hypothesis, hierarchical_prior
from fleetnas.coordinator.predictors.transfer_hypotheses import Moments, transfer_hypotheses, untransferred


@dataclass(frozen=True)
class PlainFit:
    """Weights (F,) and their covariance (F, F), scaled so that the typical architecture takes 1."""

    weights: Floats
    covariance: Floats
    typical_ms: float


def plain_fit(device: MeasuredDevice, base: Hypothesis, typical: Floats) -> PlainFit:
    """Fit a device in the space of the weights, as the normal equations say."""
    x, y = device.features, device.latency_ms
    level = float(np.median(y / np.maximum(x @ base.mean, 0.05)))
    x = x / (y / level)[:, None]
    residual = 1.0 - x @ base.mean
    prior_precision = np.linalg.inv(base.covariance)
    weights, discrepancy = np.ones(len(y)), 0.05
    for _ in range(12):
        precision = x.T @ np.diag(weights / discrepancy**2) @ x + prior_precision
        covariance = np.linalg.inv(precision)
        found = covariance @ x.T @ (weights * residual) / discrepancy**2
        left = residual - x @ found
        discrepancy = max(1.4826 * float(np.median(np.abs(left))), 1e-3)
        weights = 5.0 / (4.0 + (left / discrepancy) ** 2)
    found = base.mean + found
    unit = float(typical @ found)
    return PlainFit(found / unit, covariance / unit**2, level * unit)


def plain_moments(fits: Sequence[PlainFit], families: int) -> Moments:
    """Moments of the fits' weights."""
    weights = np.array([fit.weights for fit in fits])
    covariance = np.mean([fit.covariance for fit in fits], axis=0)
    return Moments(weights.mean(axis=0), np.cov(weights.T, bias=True), covariance, families)


def plain_log_likelihood(hypothesis: Hypothesis, x: Floats, y: Floats) -> float:
    """Log marginal likelihood, outliers down-weighted by leaving each measurement out in turn."""
    joint, mean = x @ hypothesis.covariance @ x.T, x @ hypothesis.mean
    level = np.maximum(mean, 0.05)
    noise = (level * hypothesis.discrepancy) ** 2

    def speed_and_logs(weights: Floats) -> tuple[float, float]:
        total = joint + np.diag(noise / weights)
        a, b, c = (float(left @ np.linalg.solve(total, right)) for left, right in ((y, y), (y, mean), (mean, mean)))
        speed = 2.0 * a / (b + np.sqrt(b**2 + 4.0 * a * len(y)))
        t = 1.0 / speed
        logs = len(y) * np.log(t) - 0.5 * (
            t * t * a - 2 * t * b + c + np.linalg.slogdet(total)[1] + np.log(t * t * a + len(y))
        )
        return speed, float(logs)

    def left_out(place: int, weights: Floats, speed: float) -> tuple[float, float]:
        """Error and variance of one measurement's latency predicted from all others."""
        others = np.delete(np.arange(len(y)), place)
        total = joint[np.ix_(others, others)] + np.diag((noise / weights)[others])
        gain = np.linalg.solve(total, joint[others, place])
        error = y[place] - speed * mean[place] - gain @ (y - speed * mean)[others]
        return float(error), float(speed**2 * (joint[place, place] - gain @ joint[others, place]))

    error = y / np.median(y / level) - level
    weights = outlier_weight(error, np.diagonal(joint), noise)
    for _ in range(8):
        speed, logs = speed_and_logs(weights)
        found = np.array([left_out(place, weights, speed) for place in range(len(y))])
        revised = outlier_weight(found[:, 0], found[:, 1], speed**2 * noise)
        if np.abs(revised - weights).max() < 1e-4:
            return logs
        weights = revised
    return speed_and_logs(weights)[1]


def plain_learned(
    devices: Sequence[MeasuredDevice], groups: NDArray[np.intp], voting: int = 30
) -> tuple[list[Hypothesis], Floats]:
    """All hypotheses of a learned prior, and their probabilities (H,)."""
    reference = np.concatenate([device.features for device in devices])
    base = hierarchical_prior(reference, groups, own=0.25).hypotheses[0]
    fits = {device.name: plain_fit(device, base, reference.mean(axis=0)) for device in devices}
    unknown = untransferred(reference, groups)
    families = {device.family for device in devices}
    hypotheses = transfer_hypotheses(plain_moments(list(fits.values()), len(families)), unknown, groups)
    votes = np.ones(len(hypotheses))
    for device in devices if len(families) > 1 else []:
        others = [fits[other.name] for other in devices if other.family != device.family]
        left = transfer_hypotheses(plain_moments(others, len(families) - 1), unknown, groups)
        rows = np.unique(np.linspace(0, len(device.latency_ms) - 1, min(voting, len(device.latency_ms))).astype(int))
        logs = np.array([plain_log_likelihood(h, device.features[rows], device.latency_ms[rows]) for h in left])
        likelihood = np.exp(logs - logs.max())
        votes += len(left) * likelihood / likelihood.sum()
    return hypotheses, votes / votes.sum()
