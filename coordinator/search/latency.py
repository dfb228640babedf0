"""Latency models behind one interface: block tables, predictors, and either of them with measurements."""

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
    """A latency model with fast predictions for the subnets of a candidate table."""

    def predict_additive(self, table: CandidateTable) -> NDArray[np.float32]:
        """Predict all subnets of the table by the additive model, ms, (n,)."""

    def predict_rows(self, table: CandidateTable, rows: NDArray[np.intp]) -> Floats:
        """Predict the table's rows (k,) as `predict` does, ms, (k,)."""


class SlotTableLatency:
    """Latency as a constant and a sum over slots: a block table, or a linear predictor's."""

    def __init__(self, space: DesignSpace, constant_ms: float, tables: Sequence[Floats]) -> None:
        """`tables` has one array per slot, (variants,), ms. `UsageError` where they are not of the space."""
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
        """Latency in milliseconds of canonical genomes (n, G), shape (n,)."""
        found: Floats = self._flat[self.space.slots(genomes) + self._starts].sum(axis=1)
        return found + self._constant_ms

    def slot_tables(self) -> SlotTables:
        """The additive model: a constant and, per slot, its variants' milliseconds."""
        return self._constant_ms, self._tables

    def predict_additive(self, table: CandidateTable) -> NDArray[np.float32]:
        """Predict all subnets of the table by the additive model, ms, (n,)."""
        return _additive(self.slot_tables(), table)

    def predict_rows(self, table: CandidateTable, rows: NDArray[np.intp]) -> Floats:
        """Predict the table's rows (k,), ms, (k,)."""
        return self.predict(table.genomes[rows])


class PredictorLatency:
    """The online predictor, with a margin: `mean + sigmas * standard deviation`, which is not additive."""

    def __init__(
        self,
        features: FeatureMap,
        predictor: BayesianPredictor,
        *,
        sigmas: float = 0.0,
        include_noise: bool = False,
        cache: dict[CandidateTable, _Predicted] | None = None,
    ) -> None:
        """`include_noise` adds the model discrepancy to the deviation; `cache` is that of the same predictor."""
        self._features, self._predictor = features, predictor
        self._sigmas, self._include_noise = sigmas, include_noise
        #: Predictions per table, shared by all margins; the predictor must not learn meanwhile.
        self._predicted = cache if cache is not None else {}

    def at_margin(self, sigmas: float) -> PredictorLatency:
        """Copy this model with another margin; both share one cache of predictions per table."""
        return PredictorLatency(
            self._features, self._predictor, sigmas=sigmas, include_noise=self._include_noise, cache=self._predicted
        )

    def predict(self, genomes: Genomes) -> Floats:
        """Latency in milliseconds of canonical genomes (n, G), shape (n,)."""
        features = self._features.features(genomes)
        if not self._sigmas:
            without_margin: Floats = features @ self._predictor.weights  # the deviation is most of the work
            return without_margin
        mean, deviation = self._predictor.predict(features, include_noise=self._include_noise)
        found: Floats = mean + self._sigmas * deviation
        return found

    def slot_tables(self) -> SlotTables:
        """The additive model: a constant and, per slot, its variants' milliseconds."""
        return self._features.slot_tables(self._predictor.weights)

    def predict_additive(self, table: CandidateTable) -> NDArray[np.float32]:
        """Predict all subnets of the table by the additive model, ms, (n,)."""
        return self._of(table).additive

    def predict_rows(self, table: CandidateTable, rows: NDArray[np.intp]) -> Floats:
        """Predict the table's rows (k,), ms, (k,)."""
        if not self._sigmas:
            without_margin: Floats = table.features[rows] @ self._predictor.weights
            return without_margin
        cached = self._of(table)
        missing = rows[np.isnan(cached.mean[rows])]
        if len(missing):
            cached.mean[missing], cached.deviation[missing] = self._predictor.predict(
                table.features[missing], include_noise=self._include_noise
            )
        found: Floats = cached.mean[rows] + self._sigmas * cached.deviation[rows]
        return found

    def _of(self, table: CandidateTable) -> _Predicted:
        if table not in self._predicted:
            self._predicted[table] = _Predicted(_additive(self.slot_tables(), table))
        return self._predicted[table]


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
        """Latency in milliseconds of canonical genomes (n, G), shape (n,)."""
        return self._measured_or(genome_keys(genomes), lambda unknown: self._base.predict(genomes[unknown]))

    def _measured_or(
        self, keys: NDArray[np.uint64], predict_unmeasured: Callable[[NDArray[np.intp]], Floats]
    ) -> Floats:
        """Measured latencies of subnets by key, (n,); `predict_unmeasured` gives those of the rows that have none."""
        if not len(self._keys):
            return predict_unmeasured(np.arange(len(keys)))
        place = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        found = self._latency_ms[place]
        unknown = np.flatnonzero(self._keys[place] != keys)
        if len(unknown):
            found[unknown] = predict_unmeasured(unknown)
        return found

    def slot_tables(self) -> SlotTables:
        """The additive model: a constant and, per slot, its variants' milliseconds."""
        return self._base.slot_tables()

    def predict_additive(self, table: CandidateTable) -> NDArray[np.float32]:
        """Predict all subnets of the table by the additive model, ms, (n,)."""
        return self._base.predict_additive(table)

    def predict_rows(self, table: CandidateTable, rows: NDArray[np.intp]) -> Floats:
        """Predict the table's rows (k,), ms, (k,)."""
        return self._measured_or(table.keys[rows], lambda unknown: self._base.predict_rows(table, rows[unknown]))


class _Predicted:
    """Cached predictions for a table: the additive model of all rows, mean and deviation of requested rows, ms."""

    def __init__(self, additive: NDArray[np.float32]) -> None:
        self.additive = additive
        self.mean, self.deviation = np.full(len(additive), np.nan), np.full(len(additive), np.nan)


def _additive(slot_tables: SlotTables, table: CandidateTable) -> NDArray[np.float32]:
    constant_ms, tables = slot_tables
    found: NDArray[np.float32] = np.concatenate(tables).astype(np.float32).take(table.places).sum(axis=0)
    return found + np.float32(constant_ms)
