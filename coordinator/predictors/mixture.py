"""The mixture of all hypotheses' posteriors, moments matched."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fleetnas.coordinator.predictors.posterior import Posterior
from fleetnas.coordinator.predictors.prior import Floats


class Mixture:
    """Mean and covariance of the weights, in ms per unit of feature, over all hypotheses."""

    def __init__(self, posterior: Posterior) -> None:
        """Match the first two moments of a posterior as it stands; it must not learn afterwards."""
        chances, speeds = posterior.probabilities(), posterior.speeds()
        means = posterior.h_y + speeds[:, None] * posterior.h_m
        self.mean: Floats = chances @ means  #: (F,)
        self._posterior, self._scales = posterior, chances * speeds**2
        # The covariance is a scaled sum of base matrices, most often one that all hypotheses share, minus the scaled
        # low-rank updates, plus the outer product of `apart`, the distances between the hypotheses' means.
        self._bases: list[tuple[Floats, float]] = []
        for base, scale in zip(posterior.covariances.bases, self._scales.tolist(), strict=True):
            for place, (other, known) in enumerate(self._bases):
                if other is base:
                    self._bases[place] = base, known + scale
                    break
            else:
                self._bases.append((base, scale))
        self._apart = (np.sqrt(chances)[:, None] * (means - self.mean)).T

    def variance(self, x: Floats) -> Floats:
        """Variance of the linear model's value, ms^2, (n,)."""
        learned = np.square(x @ self._posterior.covariances.factors).sum(axis=2)
        found: Floats = np.square(x @ self._apart).sum(axis=1) - self._scales @ learned
        for base, scale in self._bases:
            found += scale * ((x @ base) * x).sum(axis=1)
        return np.maximum(found, 0.0)

    def discrepancy(self, x: Floats) -> Floats:
        """Variance of the model discrepancy, ms^2, (n,)."""
        prior = self._posterior.prior
        found: Floats = (self._scales * self._posterior.tail * prior.discrepancies**2) @ self._posterior.prior_latency(
            x
        ) ** 2
        return found

    def covariance(self) -> Floats:
        """Covariance of the weights, ms^2, (F, F)."""
        found: Floats = self._apart @ self._apart.T
        factors = np.sqrt(self._scales)[:, None, None] * self._posterior.covariances.factors
        learned = factors.transpose(1, 0, 2).reshape(len(found), -1)
        found -= learned @ learned.T  # one array twice: half the work of a general product
        for base, scale in self._bases:
            found += scale * base
        return 0.5 * (found + found.T)


def covariance_factor(covariance: Floats) -> NDArray[np.float32]:
    """Factor a covariance C (F, F), which may be singular, as L with `L @ L.T` = C; L (F, F) in single precision."""
    size = len(covariance)
    floor = 1e-13 * max(float(np.trace(covariance)) / size, 1e-300)
    try:
        return np.linalg.cholesky(covariance + floor * np.eye(size)).astype(np.float32)
    except np.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(covariance)
        return np.asarray(vectors * np.sqrt(np.maximum(values, 0.0)), dtype=np.float32)
