"""The online Bayesian predictor: a device's latency as a linear function of features, with its uncertainty."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fleetnas.coordinator.predictors.active_learning import i_optimal
from fleetnas.coordinator.predictors.metrics import HeldOutError, spearman
from fleetnas.coordinator.predictors.mixture import Mixture, covariance_factor
from fleetnas.coordinator.predictors.posterior import Posterior, outlier_weight
from fleetnas.coordinator.predictors.prior import Floats, Prior
from fleetnas.fleet_protocol.errors import UsageError

_ROBUST_ROUNDS = 8
#: No measurement is taken to be exact, relative.
_SMALLEST_NOISE = 1e-6


class BayesianPredictor:
    """Bayesian linear regression of latency on any features, updated exactly, O(F^2) per measurement.

    The device's overall speed is estimated by marginal likelihood in closed form. The other hyperparameters
    (discrepancy, family of device) are the prior's list of hypotheses, all updated in parallel and averaged by their
    marginal likelihood. Nothing is refitted. Measurements of one architecture (equal features) are averaged
    first: repeats cannot show the error of the features. A measurement that all others contradict is down-weighted;
    the weights are a function of the set of measurements, so the order of updates does not matter.
    """

    def __init__(self, prior: Prior, *, robust: bool = True) -> None:
        """Start from a prior over F features; `robust` down-weights outliers."""
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
        self._mixed: Mixture | None = None
        self._factored: NDArray[np.float32] | None = None

    @property
    def count(self) -> int:
        """Number of architectures measured; repeats do not count."""
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
        new: list[int] = []
        repeats: list[int] = []
        for row, key in enumerate(keys):
            (repeats if key in self._groups else new).append(row)
            self._groups.setdefault(key, len(self._groups))
        seen = self._x
        self._x = np.concatenate([seen, x[new]])
        self._latency = np.concatenate([self._latency, y[new]])
        self._best = np.concatenate([self._best, relative[new]])
        self._precision = np.concatenate([self._precision, relative[new] ** -2])
        for row in repeats:
            self._average_in(self._groups[keys[row]], float(y[row]), float(relative[row]))
        self._repeated = self._repeated or bool(repeats)
        if self._repeated:
            # A posterior conditioned on repeats cannot take further evidence; start from the prior again.
            self._plain = self._conditioned(np.ones(self.count))
        else:
            self._plain.learn(seen, x[new], y[new], self._plain.noise(x[new], relative[new]))
        self._settled = self._mixed = self._factored = None

    def _average_in(self, index: int, latency_ms: float, relative: float) -> None:
        total = self._precision[index] + relative**-2
        self._latency[index] += (latency_ms - self._latency[index]) * relative**-2 / total
        self._precision[index] = total
        self._best[index] = min(self._best[index], relative)

    def _conditioned(self, weights: Floats) -> Posterior:
        """Posterior from the prior and all measurements, each weighted."""
        y, best, pooled = self._latency, self._best, self._precision**-0.5
        repeats = np.flatnonzero(pooled < best * (1.0 - 1e-9))
        posterior = Posterior(self.prior)
        noise = posterior.noise(self._x, best) / weights
        posterior.learn(self._x[:0], self._x, y, noise)
        if len(repeats):
            # Repeats narrow the weights but carry no evidence on the hyperparameters.
            pooled_noise = posterior.noise(self._x[repeats], pooled[repeats]) / weights[repeats]
            rest = 1.0 / (1.0 / pooled_noise - 1.0 / noise[:, repeats])
            posterior.condition_on_repeats(self._x, self._x[repeats], y[repeats], rest)
        return posterior

    # -- robustness and model averaging ------------------------------------------------------------------------

    def _posterior(self) -> Posterior:
        if self._settled is None:
            self._settled = self._settle()
        return self._settled

    def _settle(self) -> Posterior:
        """Down-weight outliers: start from the prior with a median speed, then leave each measurement out in turn."""
        self._weights_of_measurements = np.ones(self.count)
        if not self.robust or self.count < 3:
            return self._plain
        weights, posterior = self._first_weights(), self._plain
        if (weights < 1.0 - 1e-9).any():
            posterior = self._conditioned(weights)
        for _ in range(_ROBUST_ROUNDS):
            revised = self._revised_weights(posterior, weights)
            if np.abs(revised - weights).max() < 1e-4:
                break
            weights = revised
            # With full weight on every measurement the plain posterior is the answer.
            posterior = self._conditioned(weights) if (weights < 1.0 - 1e-9).any() else self._plain
        self._weights_of_measurements = weights
        return posterior

    def _first_weights(self) -> Floats:
        level = self._plain.prior_latency(self._x)
        error = self._latency / np.median(self._latency / level, axis=1)[:, None] - level
        noise = self._plain.noise(self._x, self._best)
        chances = np.exp(self.prior.log_probabilities)
        found: Floats = chances @ outlier_weight(error, self._plain.prior_variance, noise) / chances.sum()
        return found

    def _revised_weights(self, posterior: Posterior, weights: Floats) -> Floats:
        chances = posterior.probabilities()
        of_each = outlier_weight(*self._left_out(posterior, weights))
        of_each[chances < 1e-6] = 1.0
        found: Floats = chances @ of_each
        return found

    def _left_out(self, posterior: Posterior, weights: Floats) -> tuple[Floats, Floats, Floats]:
        """Predict each measurement from all others, hyperparameters kept.

        Returns: error (ms), variance of the prediction and variance of the measurement (ms^2), each (H, n).
        """
        speed = posterior.speeds()[:, None]
        noise = posterior.noise(self._x, self._best)
        kept = np.maximum(1.0 - posterior.variance * weights / noise, 1e-9)
        error = (self._latency - (posterior.h_y + speed * posterior.h_m) @ self._x.T) / kept
        return error, speed**2 * posterior.variance / kept, speed**2 * noise

    def log_evidence(self) -> float:
        """Log marginal likelihood of the measurements, averaged over the prior's hypotheses."""
        logs = self._posterior().log_posterior()
        return float(logs.max() + np.log(np.exp(logs - logs.max()).sum()))

    # -- predicting --------------------------------------------------------------------------------------------

    def _mixture(self) -> Mixture:
        if self._mixed is None:
            self._mixed = Mixture(self._posterior())
        return self._mixed

    def _covariance_factor(self) -> NDArray[np.float32]:
        if self._factored is None:
            self._factored = covariance_factor(self.covariance)
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

        With `include_noise` the standard deviation is that of a new architecture's measurement: the model discrepancy
        is added. Without it, it is that of the linear model's value.
        """
        x = self._checked_features(features)
        mixture = self._mixture()
        if len(x) < self.prior.size:
            variance = mixture.variance(x)
        else:
            # A factor in single precision: half the time, and a sum of squares cannot cancel.
            variance = np.square(x.astype(np.float32) @ self._covariance_factor()).sum(axis=1, dtype=np.float64)
        if include_noise:
            variance = variance + mixture.discrepancy(x)
        return x @ mixture.mean, np.sqrt(variance)

    # -- held-out error ----------------------------------------------------------------------------------------

    @property
    def measurement_weights(self) -> Floats:
        """Weight of each architecture's measurement, 0 (outlier) to 1, (n,), in the order of first arrival."""
        self._posterior()
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
        posterior = self._posterior()
        error: Floats = posterior.probabilities() @ self._left_out(posterior, self._weights_of_measurements)[0]
        return self._latency - error

    # -- active learning ----------------------------------------------------------------------------------------

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
