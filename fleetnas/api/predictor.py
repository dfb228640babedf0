"""A latency predictor that is fitted to measured architectures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fleetnas.coordinator.predictors.bayesian import BayesianPredictor
from fleetnas.coordinator.predictors.features import FeatureMap
from fleetnas.coordinator.predictors.metrics import HeldOutError
from fleetnas.coordinator.predictors.prior import hierarchical_prior
from fleetnas.coordinator.search.latency import LatencyModel, PredictorLatency
from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.supernet_export.bundle import SupernetBundle
from fleetnas.supernet_export.spaces.base import DesignSpace

__all__ = ["LatencyPredictor"]

#: Random architectures from which the prior takes typical costs.
_TYPICAL = 500


class LatencyPredictor:
    """Latency of one device setting: Bayesian linear regression on physical costs of every block.

    ```python
    predictor = fleetnas.LatencyPredictor(bundle).fit(architectures, latency_ms)
    mean_ms, deviation_ms = predictor.predict(others)
    ```
    """

    def __init__(self, space: DesignSpace | SupernetBundle, *, seed: int = 0) -> None:
        """Begin with a prior that knows the design space and nothing of the device.

        Args:
            space: the design space, or a bundle of it.
            seed: of the random architectures from which the prior is made.
        """
        self._space = space.space if isinstance(space, SupernetBundle) else space
        self._features = FeatureMap(self._space)
        sample = self._space.sample(_TYPICAL, np.random.default_rng([seed, 1]))
        self._predictor = BayesianPredictor(hierarchical_prior(self._features.features(sample), self._features.groups))

    @property
    def count(self) -> int:
        """Number of distinct architectures that it was fitted to."""
        return self._predictor.count

    def fit(
        self, architectures: Sequence[Architecture], latency_ms: ArrayLike, noise_ms: ArrayLike = 0.0
    ) -> LatencyPredictor:
        """Learn from n measurements, beside those of earlier calls; the order of calls does not matter.

        Args:
            architectures: n points of the design space. An architecture may be measured repeatedly.
            latency_ms: (n,), above 0.
            noise_ms: (n,) or one number: the standard deviation of each measurement.

        Returns:
            The predictor itself.

        Raises:
            ArchitectureError: an architecture is not in the design space.
            UsageError: a latency or noise is not finite or out of range, or there are not n of them.
        """
        features = self._features.features(self._space.encode(architectures))
        self._predictor.update(features, latency_ms, noise_ms)
        return self

    def predict(self, architectures: Sequence[Architecture]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Predict the mean and the standard deviation of a measurement of each architecture.

        Args:
            architectures: n points of the design space.

        Returns:
            Two arrays of shape (n,), ms. The deviation counts what the features cannot explain.

        Raises:
            ArchitectureError: an architecture is not in the design space.
        """
        features = self._features.features(self._space.encode(architectures))
        return self._predictor.predict(features, include_noise=True)

    def held_out_error(self) -> HeldOutError:
        """Compute the error of predicting each measured architecture from all others.

        Returns:
            Mean absolute percentage error, rank correlation, and their number. The first two are None where there are
            too few measurements to tell.
        """
        return self._predictor.leave_one_out()

    def suggest(self, count: int, rng: np.random.Generator, *, pool: int = 1000) -> list[Architecture]:
        """Choose architectures whose measurement teaches the predictor most (I-optimal design).

        Args:
            count: how many.
            rng: source of the random pool that they are chosen from.
            pool: its size, at least `count`.

        Raises:
            UsageError: `pool` is smaller than `count`.
        """
        genomes = self._space.sample(pool, rng)
        return self._space.decode(genomes[self._predictor.suggest(self._features.features(genomes), count, rng)])

    def latency_model(self, *, margin: float = 0.0) -> LatencyModel:
        """The predictor as `search` takes it: mean plus `margin` standard deviations of a measurement, ms."""
        return PredictorLatency(self._features, self._predictor, sigmas=margin, include_noise=True)
