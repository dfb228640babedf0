"""Candidate subnets of many device settings: features, keys and table places are computed once for all."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fleetnas.coordinator.predictors.features import FeatureMap
from fleetnas.supernet_export.spaces.base import DesignSpace, Genomes

#: Odd multipliers of a linear hash; 64 genes are more than any design space has.
_MULTIPLIERS = np.random.default_rng(0x0FA).integers(0, 2**63, 256, dtype=np.uint64) * np.uint64(2) + np.uint64(1)


class CandidateTable:
    """Canonical genomes (n, G) with their features (n, F), keys (n,) and places in slot tables."""

    def __init__(self, space: DesignSpace, genomes: Genomes) -> None:
        """`genomes` must be canonical, (n, G)."""
        self.genomes = genomes
        self.keys = genome_keys(genomes)
        self.features: NDArray[np.float64] = FeatureMap(space).features(genomes)
        starts = np.cumsum([0, *(len(costs) for costs in space.slot_costs)])[:-1]
        #: Per slot, each subnet's index into the concatenated slot tables, (S, n).
        self.places: NDArray[np.intp] = np.ascontiguousarray((space.slots(genomes) + starts).T)

    def __len__(self) -> int:
        return len(self.genomes)


def genome_keys(genomes: Genomes) -> NDArray[np.uint64]:
    """A 64-bit key per genome, (n,): equal for equal rows, and for different ones with a chance of 2^-64."""
    found: NDArray[np.uint64] = genomes.astype(np.uint64) @ _MULTIPLIERS[: genomes.shape[1]]
    return found
