"""The initial design: the subnets that every device setting measures first, and what all searches of a fleet share."""

from __future__ import annotations

import numpy as np

from fleetnas.coordinator.predictors.bayesian import BayesianPredictor
from fleetnas.coordinator.predictors.features import FeatureMap
from fleetnas.coordinator.predictors.prior import Prior, hierarchical_prior
from fleetnas.coordinator.records.bounds import Bounds, largest_within, sample_within
from fleetnas.coordinator.search.blas import single_threaded_blas
from fleetnas.coordinator.tuning.proposal import Genome
from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.supernet_export.spaces.base import DesignSpace, Genomes

#: Subnets among which the initial design is chosen.
_POOL = 2000


class InitialDesign:
    """Beginning of all searches of one space, seed and prior: the same for every device, so made once for a fleet."""

    def __init__(
        self,
        space: DesignSpace,
        *,
        count: int,
        seed: int,
        prior: Prior | None = None,
        bounds: Bounds | None = None,
        candidates: Genomes | None = None,
    ) -> None:
        """Choose `count` subnets: the smallest, the largest within the bounds, then those that teach the most.

        Of `candidates` (n, G) alone where they are given: the smallest and the largest are those by their MACs.
        """
        bounds = bounds or Bounds()
        self.space = space
        self.seed = seed
        self._architectures: dict[bytes, Architecture] = {}
        self.features = FeatureMap(space)
        if prior is None:
            sample = space.sample(500, np.random.default_rng([seed, 1]))
            prior = hierarchical_prior(self.features.features(sample), self.features.groups)
        self.prior = prior
        rng = np.random.default_rng([seed, 2])
        if candidates is None:
            smallest, largest = space.smallest(), largest_within(space, bounds, rng)
        else:
            candidates = candidates[bounds.met(space, candidates)]
            by_macs = np.argsort(space.macs(candidates), kind="stable")
            smallest, largest = candidates[by_macs[:1]], candidates[by_macs[-1:]]
        #: The smallest subnet, and the largest within the bounds.
        self.ends: list[Genome] = [smallest[0], largest[0]]
        ends = [smallest[0]] if np.array_equal(smallest, largest) else [smallest[0], largest[0]]
        self.subnets: list[Genome] = ends[:count]
        drawn = sample_within(space, bounds, _POOL, rng) if candidates is None else rng.permutation(candidates)[:_POOL]
        pool = np.unique(drawn, axis=0)
        pool = pool[~(pool[:, None] == np.stack(self.subnets)).all(axis=2).any(axis=1)]
        if len(pool):
            wanted = min(count - len(self.subnets), len(pool))
            with single_threaded_blas():
                picks = BayesianPredictor(prior).suggest(self.features.features(pool), wanted, rng)
            self.subnets.extend(pool[picks])

    def architecture(self, genome: Genome) -> Architecture:
        """Return a genome's architecture; all devices hold the same object."""
        key = genome.tobytes()
        found = self._architectures.get(key)
        if found is None:
            found = self._architectures[key] = self.space.decode(genome[None])[0]
        return found
