"""Marginal likelihood of a few measurements under many hypotheses, outliers down-weighted under each by itself."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fleetnas.coordinator.predictors.posterior import outlier_weight
from fleetnas.coordinator.predictors.prior import Floats, Hypothesis

_ROBUST_ROUNDS = 8
_SETTLED = 1e-4
#: The smallest prior latency, relative to the typical 1.
_SMALLEST_LATENCY = 0.05


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
    with np.errstate(all="ignore"):
        try:
            found = _settled(joint, mean, level, noise, y)
        except np.linalg.LinAlgError:  # one of the systems is exactly singular
            return np.full(len(hypotheses), -np.inf)
    return np.where(np.isfinite(found), found, -np.inf)


def _settled(joint: Floats, mean: Floats, level: Floats, noise: Floats, y: Floats) -> Floats:
    """Reweight until the outlier weights of each hypothesis settle; the last log likelihoods, (H,)."""
    if len(y) < 3:
        return _Systems(joint, mean, noise, y).log_likelihoods()
    error = y / np.median(y / level, axis=1)[:, None] - level
    weights = outlier_weight(error, np.einsum("hnn->hn", joint), noise)
    found = np.zeros(len(joint))
    active = np.arange(len(joint))
    for rounds in range(_ROBUST_ROUNDS + 1):
        systems = _Systems(joint[active], mean[active], noise[active] / weights[active], y)
        found[active] = systems.log_likelihoods()
        if rounds == _ROBUST_ROUNDS:
            break
        revised = outlier_weight(*systems.left_out(noise[active]))
        moved = ~(np.abs(revised - weights[active]).max(axis=1) < _SETTLED)
        active = active[moved]
        if not len(active):
            break
        weights[active] = revised[moved]
    return found


class _Systems:
    """The measurements' joint distribution under H hypotheses, up to the speed s: y ~ N(s m, s^2 (X C X' + noise))."""

    def __init__(self, joint: Floats, mean: Floats, noise: Floats, y: Floats) -> None:
        """`joint` (H, n, n), `mean` (H, n), `noise` (H, n) variances with the outliers' weights in them, `y` (n,)."""
        diagonal = np.arange(len(y))
        total = joint.copy()
        total[:, diagonal, diagonal] += noise
        self._noise, self._y, self._mean = noise, y, mean
        self._inverse = np.linalg.inv(total)
        self._precision = self._inverse[:, diagonal, diagonal]
        sign, self._log_determinant = np.linalg.slogdet(total)
        self._log_determinant[sign <= 0] = np.nan
        self._of_y = self._inverse @ y
        self._of_mean = (self._inverse @ mean[:, :, None])[:, :, 0]
        self._a, self._b, self._c = self._of_y @ y, self._of_mean @ y, (self._of_mean * mean).sum(axis=1)
        #: Maximum-likelihood speeds, (H,).
        self.speeds = 2.0 * self._a / (self._b + np.sqrt(self._b**2 + 4.0 * self._a * len(y)))

    def log_likelihoods(self) -> Floats:
        """Log marginal likelihoods, (H,), the speed integrated out (Laplace in log s)."""
        t, count = 1.0 / self.speeds, len(self._y)
        exponent = t * t * self._a - 2.0 * t * self._b + self._c
        found: Floats = count * np.log(t) - 0.5 * (exponent + self._log_determinant + np.log(t * t * self._a + count))
        return found

    def left_out(self, noise: Floats) -> tuple[Floats, Floats, Floats]:
        """Predict each measurement from all others, speeds kept (Rasmussen and Williams 2006, section 5.4.2).

        Args:
            noise: variances at full weight, (H, n).

        Returns: error (ms), variance of the prediction and variance of the measurement (ms^2), each (H, n).
        """
        speed = self.speeds[:, None]
        kept = np.maximum(self._noise * self._precision, 1e-9)  # share of the measurement's variance that is noise
        error = self._noise * (self._of_y - speed * self._of_mean) / kept
        variance = self._noise * (1.0 - self._noise * self._precision) / kept
        return error, speed**2 * np.maximum(variance, 0.0), speed**2 * noise
