"""Marginal likelihood of measurements under many hypotheses, outliers down-weighted under each by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fleetnas.coordinator.predictors.posterior import (
    lower_factor,
    measurement_noise,
    outlier_weight,
    prior_latency,
    triangular_inverse,
)
from fleetnas.coordinator.predictors.prior import Floats, Hypothesis

_ROBUST_ROUNDS = 8
_SETTLED = 1e-4
#: Log evidence that a hypothesis loses for a measurement that it gives no weight: the logarithm of how much likelier an
#: ordinary measurement is than an outlier. Without it, narrow wrong hypotheses would leave half of the sample out.
_PRICE_OF_OUTLIER = 4.0
#: A hypothesis this far behind the best one, in nats, is not settled further.
_FROZEN_NATS = 30.0
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
    level = prior_latency(mean)
    noise = measurement_noise(level, np.array([hypothesis.discrepancy for hypothesis in hypotheses]), np.zeros(len(y)))

    def evaluate(active: NDArray[np.intp], weights: Floats) -> Evaluated:
        systems = Systems(len(active))
        systems.add(np.zeros((len(active), 0, len(y))), joint[active], noise[active] / weights)
        return systems.learned(mean[active], y)

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
    """The measurements' joint distribution under H hypotheses, up to the speed s: y ~ N(s m, s^2 (X C X' + noise)).

    It grows: the inverses of the Cholesky factors of X C X' + noise are kept, and a further measurement adds one row to
    each, O(n^2).
    """

    def __init__(self, size: int) -> None:
        """Start without measurements, under `size` hypotheses."""
        #: Variances of the measured architectures' latencies under the prior, and of the measurements, (H, n) each.
        self.variance, self.noise = np.zeros((2, size, 0))
        #: Inverse of the lower Cholesky factor, (H, n, n), and the log determinant of the system, (H,).
        self._inverse, self._log_determinant = np.zeros((size, 0, 0)), np.zeros(size)
        #: Diagonal of the system's inverse, (H, n).
        self._precision = np.zeros((size, 0))

    @property
    def count(self) -> int:
        """Number of measurements."""
        return len(self.noise[0])

    def add(self, cross: Floats, joint: Floats, noise: Floats) -> None:
        """Add measurements after those before.

        Args:
            cross: prior covariances of the known architectures' latencies with the new ones', (H, n, k).
            joint: those of the new ones among themselves, (H, k, k).
            noise: variances of the new measurements at full weight, (H, k).
        """
        diagonal, known = np.arange(noise.shape[1]), self.count
        self.variance = np.concatenate([self.variance, joint[:, diagonal, diagonal]], axis=1)
        self.noise = np.concatenate([self.noise, noise], axis=1)
        white = self._inverse @ cross
        left = joint - white.transpose(0, 2, 1) @ white
        left[:, diagonal, diagonal] += noise
        lower = lower_factor(left)
        self._log_determinant = self._log_determinant + 2.0 * np.log(lower[:, diagonal, diagonal]).sum(axis=1)
        corner = triangular_inverse(lower)
        side = -corner @ (white.transpose(0, 2, 1) @ self._inverse)
        grown = np.zeros((len(noise), self.count, self.count))
        grown[:, :known, :known], grown[:, known:, :known], grown[:, known:, known:] = self._inverse, side, corner
        self._inverse = grown
        new = np.concatenate([np.square(side).sum(axis=1), np.square(corner).sum(axis=1)], axis=1)
        new[:, :known] += self._precision
        self._precision = new

    def learned(self, mean: Floats, y: Floats) -> Learned:
        """Learn latencies y (n,) at full weight, where the prior's are `mean` (H, n)."""
        white_y, white_mean = self._inverse @ y, (self._inverse @ mean[:, :, None])[:, :, 0]
        return Learned(
            noise=self.noise,
            precision=self._precision,
            of_y=(white_y[:, None] @ self._inverse)[:, 0],
            of_mean=(white_mean[:, None] @ self._inverse)[:, 0],
            a=np.square(white_y).sum(axis=1),
            b=(white_y * white_mean).sum(axis=1),
            c=np.square(white_mean).sum(axis=1),
            log_determinant=self._log_determinant,
        )

    def reweighted(self, plain: Learned, active: NDArray[np.intp], weights: Floats) -> Learned:
        """Return what is learned under the hypotheses at the places `active` (A,), with weights (A, n).

        Less weight is more noise on a few measurements, a low-rank change of `plain`, which was learned at full weight
        (Woodbury's identity): no system of n equations is solved anew.
        """
        noise = self.noise[active]
        lowered = np.flatnonzero((weights < 1.0).any(axis=0))
        if not len(lowered):
            return plain.subset(active)
        root = np.sqrt(noise[:, lowered] * (1.0 / weights[:, lowered] - 1.0))
        inverse = self._inverse if len(active) == len(self._inverse) else self._inverse[active]
        columns = inverse[:, :, lowered].transpose(0, 2, 1) @ inverse  # of the systems' inverses, (A, k, n)
        inner = columns[:, :, lowered] * (root[:, :, None] * root[:, None, :])
        diagonal = np.arange(len(lowered))
        inner[:, diagonal, diagonal] += 1.0
        lower = lower_factor(inner)
        of_y, of_mean = plain.of_y[active], plain.of_mean[active]
        scaled = triangular_inverse(lower) * root[:, None, :]
        change = scaled @ columns
        less_y = (scaled @ of_y[:, lowered, None])[:, :, 0]
        less_mean = (scaled @ of_mean[:, lowered, None])[:, :, 0]
        return Learned(
            noise=noise / weights,
            precision=plain.precision[active] - np.square(change).sum(axis=1),
            of_y=of_y - (less_y[:, None] @ change)[:, 0],
            of_mean=of_mean - (less_mean[:, None] @ change)[:, 0],
            a=plain.a[active] - np.square(less_y).sum(axis=1),
            b=plain.b[active] - (less_y * less_mean).sum(axis=1),
            c=plain.c[active] - np.square(less_mean).sum(axis=1),
            log_determinant=plain.log_determinant[active] + 2.0 * np.log(lower[:, diagonal, diagonal]).sum(axis=1),
        )


@dataclass(frozen=True, eq=False)
class Learned:
    """Measurements learned under H hypotheses; V is their covariance X C X' + noise."""

    noise: Floats  #: variances of the measurements with the outliers' weights in them, (H, n)
    precision: Floats  #: diagonal of V^-1, (H, n)
    of_y: Floats  #: V^-1 y, (H, n)
    of_mean: Floats  #: V^-1 m, (H, n)
    a: Floats  #: y' V^-1 y, (H,)
    b: Floats  #: y' V^-1 m, (H,)
    c: Floats  #: m' V^-1 m, (H,)
    log_determinant: Floats  #: of V, (H,)

    def subset(self, places: NDArray[np.intp]) -> Learned:
        """Return the hypotheses at some places."""
        return Learned(*(getattr(self, field.name)[places] for field in fields(self)))

    @property
    def speeds(self) -> Floats:
        """Maximum-likelihood speeds, (H,)."""
        found: Floats = 2.0 * self.a / (self.b + np.sqrt(self.b**2 + 4.0 * self.a * self.noise.shape[1]))
        return found

    def log_likelihoods(self) -> Floats:
        """Log marginal likelihoods, (H,), the speed integrated out (Laplace in log s)."""
        t, count = 1.0 / self.speeds, self.noise.shape[1]
        exponent = t * t * self.a - 2.0 * t * self.b + self.c
        found: Floats = count * np.log(t) - 0.5 * (exponent + self.log_determinant + np.log(t * t * self.a + count))
        return found

    def left_out(self, noise: Floats, weights: Floats) -> tuple[Floats, Floats, Floats]:
        """Predict each measurement from all others, speeds kept (Rasmussen and Williams 2006, section 5.4.2)."""
        speed = self.speeds[:, None]
        kept = np.maximum(noise / weights * self.precision, 1e-9)  # share of the measurement's variance that is noise
        error = self.noise * (self.of_y - speed * self.of_mean) / kept
        variance = self.noise * (1.0 - kept) / kept
        return error, speed**2 * np.maximum(variance, 0.0), speed**2 * noise
