"""The posterior under every hypothesis of the prior, exact, with the device's speed by marginal likelihood."""

from __future__ import annotations

import contextlib

import numpy as np

from fleetnas.coordinator.predictors.covariance import Covariances
from fleetnas.coordinator.predictors.prior import Floats, Prior

#: A measurement further than this from the prediction of all others, in standard deviations, is down-weighted.
OUTLIER_SIGMAS = 4.0
#: Rows conditioned on at once: large enough for matrix products, small enough for a small factorisation.
_BLOCK_ROWS = 64
#: The smallest prior latency, relative to the typical 1: keeps relative noise defined for odd extrapolations.
_SMALLEST_LATENCY = 0.05
#: Jitter added to a diagonal, relative to its largest entry, in increasing steps.
_JITTERS = (1e-12, 1e-9, 1e-6, 1e-3)
#: Size up to which matrices are inverted at once.
_SMALL_MATRIX = 16


class Posterior:
    """Posteriors under H hypotheses, in units of the device's unknown speed s.

    With y/s ~ N(X m, X C X' + N), the posterior mean of w is linear in y and in s: w = h_y + s * h_m, its covariance
    s^2 * C, and the likelihood of t = 1/s is n log t - (t^2 a - 2 t b + c)/2 - logdet/2, whose maximum is closed-form.
    All arrays have the hypotheses first: products of many small matrices cost more in calls than in arithmetic.
    """

    def __init__(self, prior: Prior) -> None:
        """Start from the prior: no measurements yet."""
        self.prior = prior
        self.covariances = Covariances([h.covariance for h in prior.hypotheses])
        self.h_y = np.zeros_like(prior.means)
        self.h_m = prior.means.copy()
        size = len(prior.hypotheses)
        #: The measured architectures' features, (n, F), and latencies, ms, (n,).
        self.x, self.y = np.zeros((0, prior.size)), np.zeros(0)
        #: Variance of each measured architecture's latency after the measurements, (H, n), in units of s^2.
        self.variance = np.zeros((size, 0))
        #: Log evidence that each hypothesis loses for the measurements that it down-weights, (H,).
        self.penalty = np.zeros(size)
        #: Variance of a new measurement's discrepancy relative to that of an ordinary one, (H,): outliers count.
        self.tail = np.ones(size)
        self.count = 0
        self.a, self.b, self.c, self.log_determinant = np.zeros((4, size))

    def prior_latency(self, x: Floats) -> Floats:
        """Latency relative to the typical one before any measurement, (H, k)."""
        return prior_latency(self.prior.means @ x.T)

    def noise(self, x: Floats, relative: Floats) -> Floats:
        """Variance of measurements of relative standard deviation `relative`, (H, k), in units of s^2."""
        return measurement_noise(self.prior_latency(x), self.prior.discrepancies, relative)

    def learn(self, x: Floats, y: Floats, noise: Floats) -> None:
        """Exact update on new architectures (k, F), (k,), (H, k), after those learned before."""
        for start in range(0, len(y), _BLOCK_ROWS):
            rows = slice(start, start + _BLOCK_ROWS)
            new = x[rows]
            cross = self.covariances.times(new)
            before = np.einsum("kf,hfk->hk", new, cross)
            factor, white_y, white_m, log_determinant = self._condition(new, cross, y[rows], noise[:, rows])
            self.x, self.y = np.concatenate([self.x, new]), np.concatenate([self.y, y[rows]])
            self.variance = np.concatenate([self.variance, before], axis=1)
            self.variance -= np.square(self.x @ factor).sum(axis=2)
            self.a += np.square(white_y).sum(axis=1)
            self.b += (white_y * white_m).sum(axis=1)
            self.c += np.square(white_m).sum(axis=1)
            self.log_determinant += log_determinant
            self.count += len(new)

    def condition_on_repeats(self, x: Floats, y: Floats, noise: Floats) -> None:
        """Exact update on repeats (k, F), (k,), (H, k) of architectures learned before.

        The hyperparameters (speed, probabilities of the hypotheses) stay as they are.
        """
        factor, *_ = self._condition(x, self.covariances.times(x), y, noise)
        self.variance -= np.square(self.x @ factor).sum(axis=2)

    def _condition(self, x: Floats, cross: Floats, y: Floats, noise: Floats) -> tuple[Floats, Floats, Floats, Floats]:
        """Rank-k update, `cross` being the covariances times x' (H, F, k).

        Returns the covariances' downdate factors (H, F, k), the whitened innovations of y and of the mean, (H, k) each,
        and the log determinants (H,).
        """
        gram = x @ cross
        diagonal = np.arange(len(x))
        gram[:, diagonal, diagonal] += noise
        lower = lower_factor(gram)
        inverse = triangular_inverse(lower)
        white_y = (inverse @ (y - self.h_y @ x.T)[:, :, None])[:, :, 0]
        white_m = (inverse @ (self.h_m @ x.T)[:, :, None])[:, :, 0]
        factor = (inverse @ cross.transpose(0, 2, 1)).transpose(0, 2, 1)
        self.covariances.downdate(factor)
        self.h_y += (factor @ white_y[:, :, None])[:, :, 0]
        self.h_m -= (factor @ white_m[:, :, None])[:, :, 0]
        return factor, white_y, white_m, 2.0 * np.log(lower[:, diagonal, diagonal]).sum(axis=1)

    def speeds(self) -> Floats:
        """Maximum-likelihood s under each hypothesis, (H,); the prior's scale before the first measurement."""
        if not self.count:
            return np.full(len(self.a), self.prior.scale_ms)
        found: Floats = 2.0 * self.a / (self.b + np.sqrt(self.b**2 + 4.0 * self.a * self.count))
        return found

    def log_likelihoods(self) -> Floats:
        """Log marginal likelihood of each hypothesis, (H,), the speed integrated out (Laplace in log s)."""
        if not self.count:
            return np.zeros(len(self.a))
        t = 1.0 / self.speeds()
        exponent = t * t * self.a - 2.0 * t * self.b + self.c
        found: Floats = self.count * np.log(t) - 0.5 * (
            exponent + self.log_determinant + np.log(t * t * self.a + self.count)
        )
        return found

    def left_out(self, noise: Floats, weights: Floats) -> tuple[Floats, Floats, Floats]:
        """Predict each measurement from all others, hyperparameters kept.

        Args:
            noise: variances at full weight, (H, n), in units of s^2.
            weights: those that the measurements were learned with, (H, n).

        Returns: error (ms), variance of the prediction and variance of the measurement (ms^2), each (H, n).
        """
        speed = self.speeds()[:, None]
        kept = np.maximum(1.0 - self.variance * weights / noise, 1e-9)
        error = (self.y - (self.h_y + speed * self.h_m) @ self.x.T) / kept
        return error, speed**2 * self.variance / kept, speed**2 * noise

    def probabilities(self) -> Floats:
        """Posterior probability of each hypothesis, (H,)."""
        logs = self.prior.log_probabilities + self.log_likelihoods() - self.penalty
        found = np.exp(logs - logs.max())
        total: Floats = found / found.sum()
        return total


def prior_latency(mean: Floats) -> Floats:
    """Latencies relative to the typical one that noise is relative to, given the prior's mean latencies (H, k)."""
    return np.maximum(mean, _SMALLEST_LATENCY)


def measurement_noise(level: Floats, discrepancies: Floats, relative: Floats) -> Floats:
    """Variances of measurements, (H, k), given prior latencies (H, k), discrepancies (H,), and relative noise (k,)."""
    found: Floats = level**2 * (discrepancies[:, None] ** 2 + relative**2)
    return found


def lower_factor(gram: Floats) -> Floats:
    """Cholesky factors of (H, k, k).

    Under an extreme prior, rounding may leave a matrix not quite positive definite: jitter is then added to its
    diagonal, as more noise would be. `LinAlgError` if that does not help, because the matrix is not finite.
    """
    diagonal = np.arange(gram.shape[-1])
    largest = gram[:, diagonal, diagonal].max(axis=1, keepdims=True)
    for jitter in _JITTERS:
        with contextlib.suppress(np.linalg.LinAlgError):
            return np.asarray(np.linalg.cholesky(gram), dtype=np.float64)
        gram[:, diagonal, diagonal] += jitter * largest
    return np.asarray(np.linalg.cholesky(gram), dtype=np.float64)


def outlier_weight(error: Floats, variance: Floats, noise: Floats) -> Floats:
    """Factor on a measurement's precision, given its error, the variance predicted and its own noise variance.

    1 while the error is within `OUTLIER_SIGMAS`. Beyond, the noise is raised until the error is that many standard
    deviations, and further by the square of the excess, so that the pull of an outlier falls as it grows.
    """
    excess = np.maximum(error**2 / (OUTLIER_SIGMAS**2 * (variance + noise)), 1.0)
    explained = noise + (excess - 1.0) * (variance + noise)
    found: Floats = noise / (explained * excess)
    return found


def triangular_inverse(lower: Floats) -> Floats:
    """Invert lower triangular matrices (H, n, n) by halves: numpy's inverse does not use that they are triangular."""
    size = lower.shape[-1]
    if size <= _SMALL_MATRIX:
        return np.asarray(np.linalg.inv(lower), dtype=np.float64)
    half = size // 2
    first, last = triangular_inverse(lower[:, :half, :half]), triangular_inverse(lower[:, half:, half:])
    found = np.zeros_like(lower)
    found[:, :half, :half], found[:, half:, half:] = first, last
    found[:, half:, :half] = -last @ (lower[:, half:, :half] @ first)
    return found
