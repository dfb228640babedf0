"""The posterior under one hypothesis of the prior, exact, with the device's speed by marginal likelihood."""

from __future__ import annotations

import numpy as np

from coordinator.predictors.covariance import Covariance
from coordinator.predictors.prior import Floats, Hypothesis

#: A measurement further than this from what all others foretell, in standard deviations, loses weight.
OUTLIER_SIGMAS = 4.0
#: Rows conditioned on at once: large enough for matrix products, small enough for a small factorisation.
_BLOCK_ROWS = 64
#: The smallest prior latency, relative to the typical 1: keeps relative noise defined for odd extrapolations.
_SMALLEST_LATENCY = 0.05


class Belief:
    """Posterior under one hypothesis, in units of the device's unknown speed s, which is kept apart.

    With y/s ~ N(X m, X C X' + N), the posterior mean of w is linear in y and in s: w = h_y + s * h_m, its covariance
    s^2 * C, and the likelihood of t = 1/s is n log t - (t^2 a - 2 t b + c)/2 - logdet/2, whose maximum is closed-form.
    """

    def __init__(self, hypothesis: Hypothesis) -> None:
        self.hypothesis = hypothesis
        self.covariance = Covariance(hypothesis.covariance)
        self.h_y = np.zeros_like(hypothesis.mean)
        self.h_m = hypothesis.mean.copy()
        self.prior_spread = np.zeros(0)  # of each measured architecture's latency: x' C x, before and
        self.spread = np.zeros(0)  # after the measurements
        self.count = 0
        self.a = self.b = self.c = self.log_determinant = 0.0

    def prior_latency(self, x: Floats) -> Floats:
        """Latency relative to the typical one before any measurement, (k,)."""
        return np.maximum(x @ self.hypothesis.mean, _SMALLEST_LATENCY)

    def noise(self, x: Floats, relative: Floats) -> Floats:
        """Variance of measurements of relative standard deviation `relative`, (k,), in units of s^2."""
        found: Floats = self.prior_latency(x) ** 2 * (self.hypothesis.misfit**2 + relative**2)
        return found

    def learn(self, seen: Floats, x: Floats, y: Floats, noise: Floats) -> None:
        """Exact update on new architectures (k, F), (k,), (k,), after those `seen` (n, F)."""
        known = np.concatenate([seen, x])
        for start in range(0, len(y), _BLOCK_ROWS):
            new = x[start : start + _BLOCK_ROWS]
            rows = slice(start, start + _BLOCK_ROWS)
            cross = self.covariance.times(new)
            before = np.einsum("kf,fk->k", new, cross)
            # The prior's own spread; nothing was learned yet where this is the first block.
            ahead = ((new @ self.hypothesis.covariance) * new).sum(axis=1) if self.count else before
            root, white_y, white_m, log_determinant = self._condition(new, cross, y[rows], noise[rows])
            self.prior_spread = np.concatenate([self.prior_spread, ahead])
            self.spread = np.concatenate([self.spread, before])
            self.spread -= np.square(known[: len(self.spread)] @ root).sum(axis=1)
            self.a += float(white_y @ white_y)
            self.b += float(white_y @ white_m)
            self.c += float(white_m @ white_m)
            self.log_determinant += log_determinant
            self.count += len(white_y)

    def sharpen(self, seen: Floats, x: Floats, y: Floats, noise: Floats) -> None:
        """Exact update on repeats of architectures `seen`; the hyperparameters do not hear of it."""
        root, *_ = self._condition(x, self.covariance.times(x), y, noise)
        self.spread -= np.square(seen @ root).sum(axis=1)

    def _condition(self, x: Floats, cross: Floats, y: Floats, noise: Floats) -> tuple[Floats, Floats, Floats, float]:
        """Rank-k update, `cross` being the covariance times x' (F, k).

        Returns the covariance's lost root (F, k), white innovations, and their log determinant.
        """
        error_y, error_m = y - x @ self.h_y, x @ self.h_m
        if len(y) == 1:
            deviation = float(np.sqrt(x[0] @ cross[:, 0] + noise[0]))
            root, white_y, white_m = cross / deviation, error_y / deviation, error_m / deviation
            log_determinant = 2.0 * float(np.log(deviation))
        else:
            lower = np.linalg.cholesky(x @ cross + np.diag(noise))
            solved = np.linalg.solve(lower, np.column_stack([cross.T, error_y, error_m]))
            root, white_y, white_m = solved[:, :-2].T, solved[:, -2], solved[:, -1]
            log_determinant = 2.0 * float(np.log(np.diagonal(lower)).sum())
        self.covariance.lose(root)
        self.h_y += root @ white_y
        self.h_m -= root @ white_m
        return root, white_y, white_m, log_determinant

    def speed(self) -> float | None:
        """The most likely s; None before the first measurement."""
        if not self.count or self.a <= 0:
            return None
        return 2.0 * self.a / (self.b + float(np.sqrt(self.b**2 + 4.0 * self.a * self.count)))

    def log_evidence(self) -> float:
        """Log marginal likelihood of the measurements, the speed integrated out (Laplace in log s)."""
        s = self.speed()
        if s is None:
            return 0.0
        t = 1.0 / s
        exponent = t * t * self.a - 2.0 * t * self.b + self.c
        return self.count * float(np.log(t)) - 0.5 * (
            exponent + self.log_determinant + float(np.log(t * t * self.a + self.count))
        )


def log_posterior(beliefs: list[Belief]) -> Floats:
    """Log prior probability plus log evidence of each hypothesis."""
    return np.array([b.log_evidence() + np.log(max(b.hypothesis.probability, 1e-300)) for b in beliefs])


def probabilities(beliefs: list[Belief]) -> Floats:
    """Posterior probability of each hypothesis."""
    logs = log_posterior(beliefs)
    found = np.exp(logs - logs.max())
    total: Floats = found / found.sum()
    return total


def outlier_weight(error: Floats, spread: Floats, noise: Floats) -> Floats:
    """Factor on a measurement's precision, given its error, the variance foretold and its own noise variance.

    1 while the error is within `OUTLIER_SIGMAS`. Beyond, the noise is raised until the error is that many standard
    deviations, and further by the square of the excess, so that the pull of an outlier falls as it grows.
    """
    excess = np.maximum(error**2 / (OUTLIER_SIGMAS**2 * (spread + noise)), 1.0)
    explained = excess * (spread + noise) - spread
    found: Floats = noise / (explained * excess)
    return found
