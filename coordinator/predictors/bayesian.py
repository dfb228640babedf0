"""The online Bayesian predictor: a device's latency as a linear function of features, with its uncertainty."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fleetnas.coordinator.predictors.active_learning import i_optimal
from fleetnas.coordinator.predictors.covariance import PriorProducts
from fleetnas.coordinator.predictors.marginal_likelihood import Evaluated, Systems, price, settle
from fleetnas.coordinator.predictors.metrics import HeldOutError, spearman
from fleetnas.coordinator.predictors.mixture import Mixture, covariance_factor
from fleetnas.coordinator.predictors.posterior import Posterior, measurement_noise, prior_latency
from fleetnas.coordinator.predictors.prior import Floats, Prior
from fleetnas.fleet_protocol.errors import UsageError

#: A hypothesis this far behind the best one, in nats, has no share in the posterior.
_NEGLIGIBLE = 13.0
#: Most measurements that are learned in systems of n equations; beyond, systems of F equations are smaller.
_MOST_SYSTEMS = 200
#: Largest variance of an outlier in predictions, relative to an ordinary measurement's: the square of four sigmas.
_MOST_TAIL = 16.0
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
        # Per architecture: precision-weighted mean latency, relative noise of its best sample, precision of its mean.
        self._latency, self._best, self._precision = np.zeros(0), np.zeros(0), np.zeros(0)
        self._products = PriorProducts([hypothesis.covariance for hypothesis in prior.hypotheses])
        self._systems = Systems(len(prior.hypotheses))
        self._settled: Posterior | None = None
        self._log_evidence = 0.0
        #: Weight of each measurement under each hypothesis of the settled posterior, (H, n).
        self._weights = np.ones((1, 0))
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
        self._x = np.concatenate([self._x, x[new]])
        self._latency = np.concatenate([self._latency, y[new]])
        self._best = np.concatenate([self._best, relative[new]])
        self._precision = np.concatenate([self._precision, relative[new] ** -2])
        for row in repeats:
            self._average_in(self._groups[keys[row]], float(y[row]), float(relative[row]))
        self._settled = self._mixed = self._factored = None

    def _average_in(self, index: int, latency_ms: float, relative: float) -> None:
        total = self._precision[index] + relative**-2
        self._latency[index] += (latency_ms - self._latency[index]) * relative**-2 / total
        self._precision[index] = total
        if relative < self._best[index]:
            self._best[index] = relative
            self._systems = Systems(len(self.prior.hypotheses))  # learned with more noise: starts again

    # -- robustness and model averaging ------------------------------------------------------------------------

    def _posterior(self) -> Posterior:
        if self._settled is None:
            self._settled = self._settle() if self.count else Posterior(self.prior)
        return self._settled

    def _settle(self) -> Posterior:
        """Weight the measurements under each hypothesis, and learn them under those that have a share."""
        mean = self.prior.means @ self._x.T
        level = prior_latency(mean)
        noise = measurement_noise(level, self.prior.discrepancies, self._best)
        log_prior = self.prior.log_probabilities
        evaluate: Callable[[NDArray[np.intp], Floats], Evaluated] = self._learned
        if self.count <= _MOST_SYSTEMS:
            self._grow(noise)
            variance = self._systems.variance
            evaluate = partial(self._systems.reweighted, self._systems.learned(mean, self._latency))
        else:
            variance = Posterior(self.prior).covariances.variances(self._x)
        if self.robust:
            found, weights = settle(evaluate, level, variance, noise, self._latency, log_prior)
        else:
            weights = np.ones(noise.shape)
            found = evaluate(np.arange(len(noise)), weights).log_likelihoods()
        logs = np.where(np.isfinite(found), found + log_prior, -np.inf)
        if not np.isfinite(logs).any():
            raise np.linalg.LinAlgError("the measurements have no likelihood under any hypothesis of the prior")
        self._log_evidence = float(logs.max() + np.log(np.exp(logs - logs.max()).sum()))
        live = np.flatnonzero(logs > logs.max() - _NEGLIGIBLE)
        self._weights = weights[live]
        posterior = self._learned(live, self._weights)
        posterior.penalty = price(self._weights)
        # A new measurement is an outlier as often as those learned were.
        posterior.tail = np.minimum(1.0 / self._weights, _MOST_TAIL).mean(axis=1)
        self._condition_on_repeats(posterior)
        return posterior

    def _grow(self, noise: Floats) -> None:
        """Add the measurements that arrived since the last time to the systems of n equations; noise (H, n)."""
        known = self._systems.count
        if known < self.count:
            self._systems.add(*self._products.of(self._x[:known], self._x[known:]), noise[:, known:])

    def _learned(self, places: NDArray[np.intp], weights: Floats) -> Posterior:
        posterior = Posterior(self.prior.subset(places))
        posterior.learn(self._x, self._latency, posterior.noise(self._x, self._best) / weights)
        return posterior

    def _condition_on_repeats(self, posterior: Posterior) -> None:
        """Narrow the weights by repeated measurements; they carry no evidence on the hyperparameters."""
        pooled = self._precision**-0.5
        repeats = np.flatnonzero(pooled < self._best * (1.0 - 1e-9))
        if len(repeats):
            x, weights = self._x[repeats], self._weights[:, repeats]
            once = posterior.noise(x, self._best[repeats]) / weights
            all_of_them = posterior.noise(x, pooled[repeats]) / weights
            posterior.condition_on_repeats(x, self._latency[repeats], 1.0 / (1.0 / all_of_them - 1.0 / once))

    def log_evidence(self) -> float:
        """Log marginal likelihood of the measurements, averaged over the prior's hypotheses."""
        self._posterior()
        return self._log_evidence

    @property
    def transfer_weight(self) -> float | None:
        """Probability that the device is like known ones, 0 to 1: that of all hypotheses that known devices made.

        None where the prior was not learned from known devices.
        """
        if not self.prior.transferred.any():
            return None
        posterior = self._posterior()
        return float(posterior.probabilities() @ posterior.prior.transferred)

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
        posterior = self._posterior()
        found: Floats = posterior.probabilities() @ self._weights if self.count else np.ones(0)
        return found

    def leave_one_out(self, first: int | None = None) -> HeldOutError:
        """Error of predicting each measured architecture from all others (closed form, hyperparameters kept).

        Taken over the `first` architectures that arrived, or over all.
        """
        taken = slice(first)
        y = self._latency[taken]
        if len(y) < 2:
            return HeldOutError(None, None, len(y), self.transfer_weight)
        predicted = self.predict_left_out()[taken]
        mape = 100.0 * float(np.mean(np.abs(predicted - y) / y))
        return HeldOutError(mape, spearman(predicted, y) if len(y) > 2 else None, len(y), self.transfer_weight)

    def predict_left_out(self) -> Floats:
        """Mean latency of each measured architecture predicted from all others, ms, in the order of first arrival."""
        posterior = self._posterior()
        error, *_ = posterior.left_out(posterior.noise(self._x, self._best), self._weights)
        found: Floats = self._latency - posterior.probabilities() @ error
        return found

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
