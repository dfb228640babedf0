"""Latency models behind one interface: what a search asks of a block table or of a predictor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from coordinator.predictors.bayesian import BayesianPredictor
from coordinator.predictors.features import FeatureMap
from fleet_protocol.errors import UsageError
from supernet_export.spaces.base import DesignSpace, Genomes

Floats = NDArray[np.float64]
SlotTables = tuple[float, tuple[Floats, ...]]


class LatencyModel(Protocol):
    """Foretells latency. Whether a subnet meets a target is decided by `predict` alone."""

    def predict(self, genomes: Genomes) -> Floats:
        """Latency in milliseconds of canonical genomes (n, G), shape (n,); infinite where a subnet is ruled out."""

    def slot_tables(self) -> SlotTables:
        """A constant and, per slot, its variants' milliseconds: an additive model, exact or close, for proposals."""


class SlotTableLatency:
    """Latency as a constant and a sum over slots: a block table, or a linear predictor's."""

    def __init__(self, space: DesignSpace, constant_ms: float, tables: Sequence[Floats]) -> None:
        sizes = [len(costs) for costs in space.slot_costs]
        if [len(table) for table in tables] != sizes:
            raise UsageError(
                f"{space.name} has slots of {sizes} variants; the latency table is of "
                f"{[len(table) for table in tables]}: make it for the same space and options"
            )
        self.space = space
        self._constant_ms = float(constant_ms)
        self._tables = tuple(np.asarray(table, dtype=np.float64) for table in tables)
        self._flat = np.concatenate(self._tables)
        self._starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])

    def predict(self, genomes: Genomes) -> Floats:
        found: Floats = self._flat[self.space.slots(genomes) + self._starts].sum(axis=1)
        return found + self._constant_ms

    def slot_tables(self) -> SlotTables:
        return self._constant_ms, self._tables


class PredictorLatency:
    """The online predictor, with a margin: `mean + sigmas * standard deviation`, which is not additive."""

    def __init__(
        self, features: FeatureMap, predictor: BayesianPredictor, *, sigmas: float = 0.0, include_noise: bool = False
    ) -> None:
        self._features, self._predictor = features, predictor
        self._sigmas, self._include_noise = sigmas, include_noise

    def predict(self, genomes: Genomes) -> Floats:
        features = self._features.features(genomes)
        if not self._sigmas:
            # The deviation is most of the work.
            likely: Floats = features @ self._predictor.weights
            return likely
        mean, deviation = self._predictor.predict(features, include_noise=self._include_noise)
        found: Floats = mean + self._sigmas * deviation
        return found

    def slot_tables(self) -> SlotTables:
        return self._features.slot_tables(self._predictor.weights)


class MeasuredLatency:
    """A model whose predictions are replaced by measurements where there are any."""

    def __init__(self, base: LatencyModel, genomes: Genomes, latency_ms: Floats) -> None:
        """`latency_ms` (n,) of the canonical `genomes` (n, G); infinite for a subnet that is ruled out."""
        self._base = base
        keys = genome_keys(genomes)
        order = np.argsort(keys)
        self._keys = keys[order]
        self._latency_ms = np.asarray(latency_ms, dtype=np.float64)[order]

    def predict(self, genomes: Genomes) -> Floats:
        found = self._base.predict(genomes)
        if len(self._keys):
            keys = genome_keys(genomes)
            place = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
            found = np.where(self._keys[place] == keys, self._latency_ms[place], found)
        return found

    def slot_tables(self) -> SlotTables:
        return self._base.slot_tables()


#: Odd multipliers of a linear hash; 64 genes are more than any design space has.
_MULTIPLIERS = np.random.default_rng(0x0FA).integers(0, 2**63, 256, dtype=np.uint64) * np.uint64(2) + np.uint64(1)


def genome_keys(genomes: Genomes) -> NDArray[np.uint64]:
    """A 64-bit key per genome, (n,): equal for equal rows, and for different ones with a chance of 2^-64."""
    found: NDArray[np.uint64] = genomes.astype(np.uint64) @ _MULTIPLIERS[: genomes.shape[1]]
    return found
