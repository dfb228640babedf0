"""Marginal likelihood of measurements under many hypotheses, outliers down-weighted under each by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fleetnas.coordinator.predictors.posterior import lower_factor, outlier_weight
from fleetnas.coordinator.predictors.prior import Floats, Hypothesis

_ROBUST_ROUNDS = 8
_SETTLED = 1e-4
#: Log evidence that a hypothesis loses for a measurement that it gives no weight: the logarithm of how much likelier an
#: ordinary measurement is than an outlier. Without it, narrow wrong hypotheses would leave half of the sample out.
_PRICE_OF_OUTLIER = 4.0
#: A hypothesis this far behind the best one, in nats, is not settled further.
_FROZEN_NATS = 30.0
#: The smallest prior latency, relative to the typical 1.
_SMALLEST_LATENCY = 0.05
#: Size up to which matrices are inverted at once.
_SMALL_MATRIX = 16
#: Fewest measurements among which an outlier can be told.
_FEWEST = 3


class Evaluated(Protocol):
    """Measurements learned with given weights, under some hypotheses."""

    def log_likelihoods(self) -> Floats:
        """Log marginal likelihood under each hypothesis, (H,)."""

    def left_out(self, noise: Floats, weights: Floats) -> tuple[Floats, Floats, Floats]:
        """Predict each measurement from all others.

        Args:
            noise: variances at full weight, (H, n), relative to the square of the speed.
            weights: those that the measurements were learned with, (H, n).

        Returns: error (ms), variance of the prediction and variance of the measurement (ms^2), each (H, n).
        """


def log_likelihoods(hypotheses: Sequence[Hypothesis], features: Floats, latency_ms: Floats) -> Floats:
    """Log marginal likelihood of a device's measurements under each hypothesis, (H,); -inf where it is not finite.

    It is the evidence of a `BayesianPredictor` with that hypothesis as its prior, computed in the space of the
    measurements: one product X C X' per distinct covariance, then systems of n equations only. All hypotheses are
    computed at once. A hypothesis's outlier weights depend on it alone.

    Args:
        hypotheses: any number; equal covariances should be one object.
        features: (n, F), n small. Equal rows count as one measurement, their mean.
        latency_ms: (n,), positive.
    """
    x, inverse = np.unique(features, axis=0, return_inverse=True)
    y = np.bincount(inverse.ravel(), latency_ms) / np.bincount(inverse.ravel())
    products = {id(hypothesis.covariance): hypothesis.covariance for hypothesis in hypotheses}
    products = {key: x @ covariance @ x.T for key, covariance in products.items()}
    joint = np.array([products[id(hypothesis.covariance)] for hypothesis in hypotheses])
    mean = np.array([hypothesis.mean for hypothesis in hypotheses]) @ x.T
    level = np.maximum(mean, _SMALLEST_LATENCY)
    noise = (level * np.array([hypothesis.discrepancy for hypothesis in hypotheses])[:, None]) ** 2

    def evaluate(active: NDArray[np.intp], weights: Floats) -> Evaluated:
        return Systems(joint[active], mean[active], noise[active] / weights, y)

    with np.errstate(all="ignore"):
        try:
            found, _ = settle(evaluate, level, np.einsum("hnn->hn", joint), noise, y)
        except np.linalg.LinAlgError:  # one of the systems is exactly singular
            return np.full(len(hypotheses), -np.inf)
    return np.where(np.isfinite(found), found, -np.inf)


def settle(
    evaluate: Callable[[NDArray[np.intp], Floats], Evaluated],
    level: Floats,
    variance: Floats,
    noise: Floats,
    y: Floats,
    log_prior: Floats | float = 0.0,
) -> tuple[Floats, Floats]:
    """Reweight the measurements until the outlier weights of each hypothesis settle.

    Start from the prior with a median speed, then leave each measurement out in turn. A hypothesis far behind the best
    one keeps the weights that it has by then.

    Args:
        evaluate: learns the measurements under the hypotheses at some places (A,), with weights (A, n).
        level: prior latency relative to the typical one, (H, n).
        variance: of each measured architecture's latency under the prior, (H, n).
        noise: variances of the measurements at full weight, (H, n).
        y: measured latencies, ms, (n,).
        log_prior: logarithms of the hypotheses' probabilities, (H,), by which the best one is told.

    Returns: log likelihoods (H,), less the price of the measurements left out; and the weights, (H, n).
    """
    weights = np.ones(noise.shape)
    if len(y) >= _FEWEST:
        error = y / np.median(y / level, axis=1)[:, None] - level
        weights = outlier_weight(error, variance, noise)
    found = np.zeros(len(noise))
    active = np.arange(len(noise))
    for rounds in range(_ROBUST_ROUNDS + 1):
        evaluated = evaluate(active, weights[active])
        found[active] = evaluated.log_likelihoods() - price(weights[active])
        if rounds == _ROBUST_ROUNDS or len(y) < _FEWEST:
            break
        revised = outlier_weight(*evaluated.left_out(noise[active], weights[active]))
        total = found + log_prior
        moved = ~(np.abs(revised - weights[active]).max(axis=1) < _SETTLED) & ~(
            total[active] < np.nanmax(total, initial=-np.inf) - _FROZEN_NATS
        )
        active = active[moved]
        if not len(active):
            break
        weights[active] = revised[moved]
    return found, weights


def price(weights: Floats) -> Floats:
    """Log evidence that hypotheses lose for down-weighted measurements, (H,), given the weights (H, n)."""
    found: Floats = _PRICE_OF_OUTLIER * (1.0 - weights).sum(axis=1)
    return found


class Systems:
    """The measurements' joint distribution under H hypotheses, up to the speed s: y ~ N(s m, s^2 (X C X' + noise))."""

    def __init__(self, joint: Floats, mean: Floats, noise: Floats, y: Floats) -> None:
        """`joint` (H, n, n), `mean` (H, n), `noise` (H, n) variances with the outliers' weights in them, `y` (n,)."""
        diagonal = np.arange(len(y))
        total = joint.copy()
        total[:, diagonal, diagonal] += noise
        self._noise, self._count = noise, len(y)
        lower = lower_factor(total)
        self._log_determinant = 2.0 * np.log(lower[:, diagonal, diagonal]).sum(axis=1)
        inverse = _triangular_inverse(lower)
        white_y, white_mean = inverse @ y, (inverse @ mean[:, :, None])[:, :, 0]
        self._precision = np.square(inverse).sum(axis=1)
        self._of_y = (white_y[:, None] @ inverse)[:, 0]
        self._of_mean = (white_mean[:, None] @ inverse)[:, 0]
        self._a, self._b = np.square(white_y).sum(axis=1), (white_y * white_mean).sum(axis=1)
        self._c = np.square(white_mean).sum(axis=1)
        #: Maximum-likelihood speeds, (H,).
        self.speeds = 2.0 * self._a / (self._b + np.sqrt(self._b**2 + 4.0 * self._a * len(y)))

    def log_likelihoods(self) -> Floats:
        """Log marginal likelihoods, (H,), the speed integrated out (Laplace in log s)."""
        t, count = 1.0 / self.speeds, self._count
        exponent = t * t * self._a - 2.0 * t * self._b + self._c
        found: Floats = count * np.log(t) - 0.5 * (exponent + self._log_determinant + np.log(t * t * self._a + count))
        return found

    def left_out(self, noise: Floats, weights: Floats) -> tuple[Floats, Floats, Floats]:
        """Predict each measurement from all others, speeds kept (Rasmussen and Williams 2006, section 5.4.2)."""
        speed = self.speeds[:, None]
        kept = np.maximum(noise / weights * self._precision, 1e-9)  # share of the measurement's variance that is noise
        error = self._noise * (self._of_y - speed * self._of_mean) / kept
        variance = self._noise * (1.0 - kept) / kept
        return error, speed**2 * np.maximum(variance, 0.0), speed**2 * noise


def _triangular_inverse(lower: Floats) -> Floats:
    """Invert lower triangular matrices (H, n, n) by halves: numpy's inverse does not use that they are triangular."""
    size = lower.shape[-1]
    if size <= _SMALL_MATRIX:
        return np.asarray(np.linalg.inv(lower), dtype=np.float64)
    half = size // 2
    first, last = _triangular_inverse(lower[:, :half, :half]), _triangular_inverse(lower[:, half:, half:])
    found = np.zeros_like(lower)
    found[:, :half, :half], found[:, half:, half:] = first, last
    found[:, half:, :half] = -last @ (lower[:, half:, :half] @ first)
    return found
