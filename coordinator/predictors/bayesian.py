"""The online Bayesian predictor: a device's latency as a linear function of features, with its uncertainty."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fleetnas.coordinator.predictors.active_learning import i_optimal
from fleetnas.coordinator.predictors.metrics import HeldOutError, spearman
from fleetnas.coordinator.predictors.posterior import Posterior, outlier_weight
from fleetnas.coordinator.predictors.prior import Floats, Prior
from fleetnas.fleet_protocol.errors import UsageError

__all__ = ["BayesianPredictor", "HeldOutError"]

_ROBUST_ROUNDS = 8
#: No measurement is taken to be exact, relative.
_SMALLEST_NOISE = 1e-6


class BayesianPredictor:
    """Bayesian linear regression of latency on any features, updated exactly, O(F^2) per measurement.

    The device's overall speed is estimated by marginal likelihood in closed form; what else is uncertain about the
    model (discrepancy, family of device) is the prior's list of hypotheses, all updated in parallel and averaged by
    their marginal likelihood. Nothing is refitted. Measurements of one architecture (equal features) are averaged
    first: repeating it cannot tell what the features miss. A measurement that all others contradict is down-weighted;
    the weights are a function of the set of measurements, so the order of updates does not matter.
    """

    def __init__(self, prior: Prior, *, robust: bool = True) -> None:
        self.prior = prior
        self.robust = robust
        self._x = np.zeros((0, prior.size))
        self._groups: dict[bytes, int] = {}
        self._repeated = False
        # Per architecture: precision-weighted mean latency, relative noise of its best sample, precision of its mean.
        self._latency, self._best, self._precision = np.zeros(0), np.zeros(0), np.zeros(0)
        self._plain = Posterior(prior)
        self._settled: Posterior | None = None
        self._weights_of_measurements = np.ones(0)
        self._mixed: _Mixture | None = None
        self._factored: NDArray[np.float32] | None = None

    @property
    def count(self) -> int:
        """How many architectures were measured; repeats do not count."""
        return len(self._latency)

    # -- learning ----------------------------------------------------------------------------------------------

    def update(self, features: ArrayLike, latency_ms: ArrayLike, noise_ms: ArrayLike = 0.0) -> None:
        """Learn from measurements.

        Args:
            features: (k, F), or (F,) for one measurement.
            latency_ms: (k,), positive.
            noise_ms: (k,) or a number: standard deviation of each measurement, from its own samples.

        Raises:
            UsageError: an input is not finite, not positive where it must be, or of the wrong shape.
        """
        x = self._checked_features(features)
        y = np.atleast_1d(np.asarray(latency_ms, dtype=np.float64))
        noise = np.broadcast_to(np.asarray(noise_ms, dtype=np.float64), y.shape)
        if y.shape != (len(x),):
            raise UsageError(f"each row of features needs one latency; found {len(x)} rows and latencies of {y.shape}")
        if not (np.isfinite(y).all() and (y > 0).all()):
            raise UsageError(f"latencies must be finite and above 0 ms; found {y[~(np.isfinite(y) & (y > 0))][:5]}")
        if not (np.isfinite(noise).all() and (noise >= 0).all()):
            bad = noise[~(np.isfinite(noise) & (noise >= 0))][:5]
            raise UsageError(f"noise must be finite and not below 0 ms; found {bad}")
        relative = np.maximum(noise / y, _SMALLEST_NOISE)
        keys = [row.tobytes() for row in x]
        fresh: list[int] = []
        repeats: list[int] = []
        for row, key in enumerate(keys):
            (repeats if key in self._groups else fresh).append(row)
            self._groups.setdefault(key, len(self._groups))
        seen = self._x
        self._x = np.concatenate([seen, x[fresh]])
        self._latency = np.concatenate([self._latency, y[fresh]])
        self._best = np.concatenate([self._best, relative[fresh]])
        self._precision = np.concatenate([self._precision, relative[fresh] ** -2])
        for row in repeats:
            self._average_in(self._groups[keys[row]], float(y[row]), float(relative[row]))
        self._repeated = self._repeated or bool(repeats)
        if self._repeated:
            # Posterior sharpened by repeats cannot go on counting evidence; start from the prior again.
            self._plain = self._believe(np.ones(self.count))
        else:
            self._plain.learn(seen, x[fresh], y[fresh], self._plain.noise(x[fresh], relative[fresh]))
        self._settled = self._mixed = self._factored = None

    def _average_in(self, index: int, latency_ms: float, relative: float) -> None:
        total = self._precision[index] + relative**-2
        self._latency[index] += (latency_ms - self._latency[index]) * relative**-2 / total
        self._precision[index] = total
        self._best[index] = min(self._best[index], relative)

    def _believe(self, weights: Floats) -> Posterior:
        """Posterior from the prior and all measurements, each weighted."""
        y, best, pooled = self._latency, self._best, self._precision**-0.5
        repeats = np.flatnonzero(pooled < best * (1.0 - 1e-9))
        beliefs = Posterior(self.prior)
        noise = beliefs.noise(self._x, best) / weights
        beliefs.learn(self._x[:0], self._x, y, noise)
        if len(repeats):
            # Repeats sharpen the weights but say nothing new on the hyperparameters.
            sharper = beliefs.noise(self._x[repeats], pooled[repeats]) / weights[repeats]
            rest = 1.0 / (1.0 / sharper - 1.0 / noise[:, repeats])
            beliefs.sharpen(self._x, self._x[repeats], y[repeats], rest)
        return beliefs

    # -- robustness and model averaging ------------------------------------------------------------------------

    def _beliefs(self) -> Posterior:
        if self._settled is None:
            self._settled = self._settle()
        return self._settled

    def _settle(self) -> Posterior:
        """Down-weight outliers: start from the prior's view with a median speed, then leave each out in turn."""
        self._weights_of_measurements = np.ones(self.count)
        if not self.robust or self.count < 3:
            return self._plain
        weights, beliefs = self._first_weights(), self._plain
        if (weights < 1.0 - 1e-9).any():
            beliefs = self._believe(weights)
        for _ in range(_ROBUST_ROUNDS):
            revised = self._revised_weights(beliefs, weights)
            if np.abs(revised - weights).max() < 1e-4:
                break
            weights = revised
            # With every measurement believed in full there is nothing to learn again.
            beliefs = self._believe(weights) if (weights < 1.0 - 1e-9).any() else self._plain
        self._weights_of_measurements = weights
        return beliefs

    def _first_weights(self) -> Floats:
        level = self._plain.prior_latency(self._x)
        error = self._latency / np.median(self._latency / level, axis=1)[:, None] - level
        noise = self._plain.noise(self._x, self._best)
        chances = np.exp(self.prior.log_probabilities)
        found: Floats = chances @ outlier_weight(error, self._plain.prior_spread, noise) / chances.sum()
        return found

    def _revised_weights(self, beliefs: Posterior, weights: Floats) -> Floats:
        chances = beliefs.probabilities()
        of_each = outlier_weight(*self._left_out(beliefs, weights))
        of_each[chances < 1e-6] = 1.0
        found: Floats = chances @ of_each
        return found

    def _left_out(self, beliefs: Posterior, weights: Floats) -> tuple[Floats, Floats, Floats]:
        """Foretell each measurement from all others, hyperparameters kept.

        Returns: error (ms), variance of what is predicted and variance of the measurement (ms^2), each (H, n).
        """
        speed = beliefs.speeds()[:, None]
        noise = beliefs.noise(self._x, self._best)
        kept = np.maximum(1.0 - beliefs.spread * weights / noise, 1e-9)
        error = (self._latency - (beliefs.h_y + speed * beliefs.h_m) @ self._x.T) / kept
        return error, speed**2 * beliefs.spread / kept, speed**2 * noise

    def log_evidence(self) -> float:
        """Log marginal likelihood of the measurements, averaged over the prior's hypotheses."""
        logs = self._beliefs().log_posterior()
        return float(logs.max() + np.log(np.exp(logs - logs.max()).sum()))

    # -- predicting --------------------------------------------------------------------------------------------

    def _mixture(self) -> _Mixture:
        if self._mixed is None:
            self._mixed = _Mixture(self._beliefs())
        return self._mixed

    def _covariance_factor(self) -> NDArray[np.float32]:
        if self._factored is None:
            self._factored = _factor(self.covariance)
        return self._factored

    @property
    def weights(self) -> Floats:
        """Posterior mean of the weights, ms per unit of feature, (F,)."""
        return self._mixture().mean.copy()

    @property
    def covariance(self) -> Floats:
        """Posterior covariance of the weights, ms^2, (F, F)."""
        return self._mixture().covariance()

    def predict(self, features: ArrayLike, *, include_noise: bool = False) -> tuple[Floats, Floats]:
        """Mean and standard deviation of latency, ms, each (n,).

        With `include_noise` the standard deviation is that of a new architecture's measurement: what the features
        cannot explain is added. Without it, it is that of the linear model's value.
        """
        x = self._checked_features(features)
        mixture = self._mixture()
        if len(x) < self.prior.size:
            variance = mixture.spread(x)
        else:
            # A factor in single precision: half the time, and a sum of squares cannot cancel.
            variance = np.square(x.astype(np.float32) @ self._covariance_factor()).sum(axis=1, dtype=np.float64)
        if include_noise:
            variance = variance + mixture.discrepancy(x)
        return x @ mixture.mean, np.sqrt(variance)

    # -- its own error -----------------------------------------------------------------------------------------

    @property
    def measurement_weights(self) -> Floats:
        """How far each architecture's measurement is believed, 0 to 1, in the order of first arrival."""
        self._beliefs()
        return self._weights_of_measurements.copy()

    def leave_one_out(self, first: int | None = None) -> HeldOutError:
        """Error of predicting each measured architecture from all others (closed form, hyperparameters kept).

        Taken over the `first` architectures that arrived, or over all.
        """
        taken = slice(first)
        y = self._latency[taken]
        if len(y) < 2:
            return HeldOutError(None, None, len(y))
        predicted = self.predict_left_out()[taken]
        mape = 100.0 * float(np.mean(np.abs(predicted - y) / y))
        return HeldOutError(mape, spearman(predicted, y) if len(y) > 2 else None, len(y))

    def predict_left_out(self) -> Floats:
        """Mean latency of each measured architecture predicted from all others, ms, in the order of first arrival."""
        beliefs = self._beliefs()
        error: Floats = beliefs.probabilities() @ self._left_out(beliefs, self._weights_of_measurements)[0]
        return self._latency - error

    # -- what to measure next ----------------------------------------------------------------------------------

    def suggest(
        self,
        pool: ArrayLike,
        k: int,
        rng: np.random.Generator,
        *,
        targets_ms: ArrayLike | None = None,
        most_candidates: int = 1000,
    ) -> NDArray[np.intp]:
        """Indices into `pool` (n, F) of the `k` architectures whose measurement helps most, best first.

        Greedy I-optimal design: each choice lowers the pool's mean relative predictive variance the most; with
        `targets_ms`, architectures near a target count more. A pool larger than `most_candidates` is subsampled.
        """
        features = self._checked_features(pool)
        if not 0 <= k <= len(features):
            raise UsageError(f"{k} architectures cannot be chosen from a pool of {len(features)}; enlarge the pool")
        chosen = np.arange(len(features))
        if len(features) > max(most_candidates, k):
            chosen = np.sort(rng.choice(len(features), max(most_candidates, k), replace=False))
        x = features[chosen]
        mean, deviation = self.predict(x, include_noise=True)
        targets = None if targets_ms is None else np.atleast_1d(np.asarray(targets_ms, dtype=np.float64))
        found: NDArray[np.intp] = chosen[i_optimal(mean, deviation**2, x @ self.covariance @ x.T, k, rng, targets)]
        return found

    def _checked_features(self, features: ArrayLike) -> Floats:
        x = np.atleast_2d(np.asarray(features, dtype=np.float64))
        if x.ndim != 2 or x.shape[1] != self.prior.size:
            raise UsageError(f"features must have {self.prior.size} columns, as the prior does; found shape {x.shape}")
        if not np.isfinite(x).all():
            row, column = np.argwhere(~np.isfinite(x))[0]
            raise UsageError(f"features must be finite; row {row}, column {column} is {x[row, column]}")
        return x


class _Mixture:
    """The weights in ms under all hypotheses together, moments matched."""

    def __init__(self, beliefs: Posterior) -> None:
        chances, speeds = beliefs.probabilities(), beliefs.speeds()
        means = beliefs.h_y + speeds[:, None] * beliefs.h_m
        self.mean: Floats = chances @ means  #: (F,)
        factors = chances * speeds**2
        self._beliefs, self._factors = beliefs, factors
        # Its covariance: matrices with a factor each, most often one that all hypotheses share, less what was learned;
        # plus the square of `apart`, how far the hypotheses' means are.
        self._matrices: dict[int, tuple[Floats, float]] = {}
        for rest, factor in zip(beliefs.covariances.rests, factors.tolist(), strict=True):
            _, known = self._matrices.get(id(rest), (rest, 0.0))
            self._matrices[id(rest)] = rest, known + factor
        self._apart = (np.sqrt(chances)[:, None] * (means - self.mean)).T

    def spread(self, x: Floats) -> Floats:
        """Variance of the linear model's value, ms^2, (n,)."""
        learned = np.square(x @ self._beliefs.covariances.roots).sum(axis=2)
        found: Floats = np.square(x @ self._apart).sum(axis=1) - self._factors @ learned
        for matrix, factor in self._matrices.values():
            found += factor * ((x @ matrix) * x).sum(axis=1)
        return np.maximum(found, 0.0)

    def discrepancy(self, x: Floats) -> Floats:
        """Variance of what the features cannot explain, ms^2, (n,)."""
        prior = self._beliefs.prior
        found: Floats = (self._factors * prior.misfits**2) @ self._beliefs.prior_latency(x) ** 2
        return found

    def covariance(self) -> Floats:
        """Of the weights, ms^2, (F, F)."""
        found: Floats = self._apart @ self._apart.T
        for factor, root in zip(self._factors, self._beliefs.covariances.roots, strict=True):
            found -= factor * (root @ root.T)
        for matrix, factor in self._matrices.values():
            found += factor * matrix
        return 0.5 * (found + found.T)


def _factor(covariance: Floats) -> NDArray[np.float32]:
    """A factor F with F F' = covariance, for a matrix that may be singular."""
    size = len(covariance)
    floor = 1e-13 * max(float(np.trace(covariance)) / size, 1e-300)
    try:
        return np.linalg.cholesky(covariance + floor * np.eye(size)).astype(np.float32)
    except np.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(covariance)
        return np.asarray(vectors * np.sqrt(np.maximum(values, 0.0)), dtype=np.float32)
