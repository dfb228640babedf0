"""What the searches of a fleet's devices have in common before the first measurement."""

from __future__ import annotations

import numpy as np

from fleetnas.coordinator.predictors.bayesian import BayesianPredictor
from fleetnas.coordinator.predictors.features import FeatureMap
from fleetnas.coordinator.predictors.prior import Prior, hierarchical_prior
from fleetnas.coordinator.records.bounds import Bounds, largest_within, sample_within
from fleetnas.coordinator.search.blas import single_threaded_blas
from fleetnas.coordinator.tuning.proposal import Genome
from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.supernet_export.spaces.base import DesignSpace

#: Subnets of which the spread is chosen.
_SPREAD_POOL = 2000


class InitialDesign:
    """How searches of one space, seed and prior begin: the same for every device, so made once for a fleet."""

    def __init__(
        self, space: DesignSpace, *, count: int, seed: int, prior: Prior | None = None, bounds: Bounds | None = None
    ) -> None:
        """`count` subnets cover the space: the smallest, the largest that may be, then what teaches the most."""
        bounds = bounds or Bounds()
        self._space = space
        self._architectures: dict[bytes, Architecture] = {}
        self.features = FeatureMap(space)
        if prior is None:
            sample = space.sample(500, np.random.default_rng([seed, 1]))
            prior = hierarchical_prior(self.features.features(sample), self.features.groups)
        self.prior = prior
        rng = np.random.default_rng([seed, 2])
        smallest, largest = space.smallest(), largest_within(space, bounds, rng)
        #: The smallest subnet, and the largest that may be.
        self.ends: list[Genome] = [smallest[0], largest[0]]
        ends = [smallest[0]] if np.array_equal(smallest, largest) else [smallest[0], largest[0]]
        self.spread: list[Genome] = ends[:count]
        pool = np.unique(sample_within(space, bounds, _SPREAD_POOL, rng), axis=0)
        pool = pool[~(pool[:, None] == np.stack(self.spread)).all(axis=2).any(axis=1)]
        if len(pool):
            wanted = min(count - len(self.spread), len(pool))
            with single_threaded_blas():
                picks = BayesianPredictor(prior).suggest(self.features.features(pool), wanted, rng)
            self.spread.extend(pool[picks])

    def architecture(self, genome: Genome) -> Architecture:
        """A genome's architecture; all devices hold the same object."""
        key = genome.tobytes()
        found = self._architectures.get(key)
        if found is None:
            found = self._architectures[key] = self._space.decode(genome[None])[0]
        return found
