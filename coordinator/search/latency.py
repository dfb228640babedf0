"""Latency models behind one interface: what a search asks of a block table or of a predictor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fleetnas.coordinator.predictors.bayesian import BayesianPredictor
from fleetnas.coordinator.predictors.features import FeatureMap
from fleetnas.coordinator.search.candidate_table import CandidateTable, genome_keys
from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.supernet_export.spaces.base import DesignSpace, Genomes, SlotTables

Floats = NDArray[np.float64]


class LatencyModel(Protocol):
    """Predicts latency. Whether a subnet meets a target is decided by `predict` alone."""

    def predict(self, genomes: Genomes) -> Floats:
        """Latency in milliseconds of canonical genomes (n, G), shape (n,); infinite where a subnet is ruled out."""

    def slot_tables(self) -> SlotTables:
        """A constant and, per slot, its variants' milliseconds: an additive model, exact or close, for proposals."""


class TableLatency(LatencyModel, Protocol):
    """A latency model that is quick with the subnets of a library."""

    def predict_additive(self, library: CandidateTable) -> NDArray[np.float32]:
        """What the additive model says of every one of them, (n,)."""

    def predict_rows(self, library: CandidateTable, rows: NDArray[np.intp]) -> Floats:
        """What `predict` says of some of them, (k,)."""


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

    def predict_additive(self, library: CandidateTable) -> NDArray[np.float32]:
        return _additive(self.slot_tables(), library)

    def predict_rows(self, library: CandidateTable, rows: NDArray[np.intp]) -> Floats:
        return self.predict(library.genomes[rows])


class PredictorLatency:
    """The online predictor, with a margin: `mean + sigmas * standard deviation`, which is not additive."""

    def __init__(
        self, features: FeatureMap, predictor: BayesianPredictor, *, sigmas: float = 0.0, include_noise: bool = False
    ) -> None:
        self._features, self._predictor = features, predictor
        self._sigmas, self._include_noise = sigmas, include_noise
        #: What was predicted of a library's subnets, for all margins; the predictor must not learn meanwhile.
        self._predicted: dict[CandidateTable, _Predicted] = {}

    def at_margin(self, sigmas: float) -> PredictorLatency:
        """The same predictor with another margin; what one predicts of a library serves the other."""
        other = PredictorLatency(self._features, self._predictor, sigmas=sigmas, include_noise=self._include_noise)
        other._predicted = self._predicted
        return other

    def predict(self, genomes: Genomes) -> Floats:
        features = self._features.features(genomes)
        if not self._sigmas:
            # The deviation is most of the work.
            predict_additive: Floats = features @ self._predictor.weights
            return predict_additive
        mean, deviation = self._predictor.predict(features, include_noise=self._include_noise)
        found: Floats = mean + self._sigmas * deviation
        return found

    def slot_tables(self) -> SlotTables:
        return self._features.slot_tables(self._predictor.weights)

    def predict_additive(self, library: CandidateTable) -> NDArray[np.float32]:
        return self._of(library).predict_additive

    def predict_rows(self, library: CandidateTable, rows: NDArray[np.intp]) -> Floats:
        if not self._sigmas:  # the deviation is most of the work
            predict_additive: Floats = library.features[rows] @ self._predictor.weights
            return predict_additive
        known = self._of(library)
        fresh = rows[np.isnan(known.mean[rows])]
        if len(fresh):
            known.mean[fresh], known.deviation[fresh] = self._predictor.predict(
                library.features[fresh], include_noise=self._include_noise
            )
        found: Floats = known.mean[rows] + self._sigmas * known.deviation[rows]
        return found

    def _of(self, library: CandidateTable) -> _Predicted:
        if library not in self._predicted:
            self._predicted[library] = _Predicted(_additive(self.slot_tables(), library))
        return self._predicted[library]


class MeasuredLatency:
    """A model whose predictions are replaced by measurements where there are any."""

    def __init__(self, base: TableLatency, genomes: Genomes, latency_ms: Floats) -> None:
        """`latency_ms` (n,) of the canonical `genomes` (n, G); infinite for a subnet that is ruled out."""
        self._base = base
        keys = genome_keys(genomes)
        order = np.argsort(keys)
        self._keys = keys[order]
        self._latency_ms = np.asarray(latency_ms, dtype=np.float64)[order]

    def predict(self, genomes: Genomes) -> Floats:
        return self._measured_or(genome_keys(genomes), lambda unknown: self._base.predict(genomes[unknown]))

    def _measured_or(self, keys: NDArray[np.uint64], foretell: Callable[[NDArray[np.intp]], Floats]) -> Floats:
        """The measurements of subnets by key, (n,); `predict` is asked for the rows that have none."""
        if not len(self._keys):
            return foretell(np.arange(len(keys)))
        place = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        found = self._latency_ms[place]
        unknown = np.flatnonzero(self._keys[place] != keys)
        if len(unknown):
            found[unknown] = foretell(unknown)
        return found

    def slot_tables(self) -> SlotTables:
        return self._base.slot_tables()

    def predict_additive(self, library: CandidateTable) -> NDArray[np.float32]:
        return self._base.predict_additive(library)

    def predict_rows(self, library: CandidateTable, rows: NDArray[np.intp]) -> Floats:
        return self._measured_or(library.keys[rows], lambda unknown: self._base.predict_rows(library, rows[unknown]))


class _Predicted:
    """What a predictor predicts of a library: the additive part of all, mean and deviation of those asked for."""

    def __init__(self, predict_additive: NDArray[np.float32]) -> None:
        self.predict_additive = predict_additive
        self.mean, self.deviation = np.full(len(predict_additive), np.nan), np.full(len(predict_additive), np.nan)


def _additive(slot_tables: SlotTables, library: CandidateTable) -> NDArray[np.float32]:
    constant_ms, tables = slot_tables
    found: NDArray[np.float32] = np.concatenate(tables).astype(np.float32)[library.places].sum(axis=0)
    return found + np.float32(constant_ms)
