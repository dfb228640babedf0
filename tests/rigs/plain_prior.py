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


class PlainSample:
    """A device's measurements under one hypothesis, each left out in turn to find its weight."""

    def __init__(self, hypothesis: Hypothesis, x: Floats, y: Floats) -> None:
        self.joint, self.mean, self.y = x @ hypothesis.covariance @ x.T, x @ hypothesis.mean, y
        level = np.maximum(self.mean, 0.05)
        self.noise = (level * hypothesis.discrepancy) ** 2
        error = y / np.median(y / level) - level
        self.weights = outlier_weight(error, np.diagonal(self.joint), self.noise)
        self.settled = False

    def speed_and_log_likelihood(self) -> tuple[float, float]:
        y, mean, count = self.y, self.mean, len(self.y)
        total = self.joint + np.diag(self.noise / self.weights)
        a, b, c = (float(left @ np.linalg.solve(total, right)) for left, right in ((y, y), (y, mean), (mean, mean)))
        speed = 2.0 * a / (b + np.sqrt(b**2 + 4.0 * a * count))
        t = 1.0 / speed
        logs = count * np.log(t) - 0.5 * (
            t * t * a - 2 * t * b + c + np.linalg.slogdet(total)[1] + np.log(t * t * a + count)
        )
        # An ordinary measurement is so much likelier than an outlier.
        return speed, float(logs) - 4.0 * float((1.0 - self.weights).sum())

    def left_out(self, place: int, speed: float) -> tuple[float, float]:
        """Error and variance of one measurement's latency predicted from all others."""
        others = np.delete(np.arange(len(self.y)), place)
        total = self.joint[np.ix_(others, others)] + np.diag((self.noise / self.weights)[others])
        gain = np.linalg.solve(total, self.joint[others, place])
        error = self.y[place] - speed * self.mean[place] - gain @ (self.y - speed * self.mean)[others]
        return float(error), float(speed**2 * (self.joint[place, place] - gain @ self.joint[others, place]))

    def reweight(self) -> None:
        """Revise the weights, or note that they have settled."""
        speed, _ = self.speed_and_log_likelihood()
        found = np.array([self.left_out(place, speed) for place in range(len(self.y))])
        revised = outlier_weight(found[:, 0], found[:, 1], speed**2 * self.noise)
        self.settled = bool(np.abs(revised - self.weights).max() < 1e-4)
        if not self.settled:
            self.weights = revised


def plain_log_likelihoods(hypotheses: Sequence[Hypothesis], x: Floats, y: Floats) -> Floats:
    """Log marginal likelihoods, (H,); a hypothesis 30 nats behind keeps the weights that it has."""
    samples = [PlainSample(hypothesis, x, y) for hypothesis in hypotheses]
    for _ in range(8):
        logs = [sample.speed_and_log_likelihood()[1] for sample in samples]
        for sample, log in zip(samples, logs, strict=True):
            sample.settled = sample.settled or log < max(logs) - 30
            if not sample.settled:
                sample.reweight()
    return np.array([sample.speed_and_log_likelihood()[1] for sample in samples])


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
    votes = 2.0 * np.array([hypothesis.probability for hypothesis in hypotheses])
    for device in devices if len(families) > 1 else []:
        others = [fits[other.name] for other in devices if other.family != device.family]
        left = transfer_hypotheses(plain_moments(others, len(families) - 1), unknown, groups)
        rows = np.unique(np.linspace(0, len(device.latency_ms) - 1, min(voting, len(device.latency_ms))).astype(int))
        logs = plain_log_likelihoods(left, device.features[rows], device.latency_ms[rows])
        likelihood = np.exp(logs - logs.max())
        settings = sum(other.family == device.family for other in devices)
        votes += likelihood / likelihood.sum() / settings
    return hypotheses, votes / votes.sum()
