"""What is searched for: the most accurate subnet within a latency target and further bounds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from coordinator.search.latency import LatencyModel, SlotTableLatency, SlotTables, genome_keys
from fleet_protocol.architecture import Architecture
from fleet_protocol.errors import InfeasibleTargetError, UsageError
from supernet_export.accuracy import AccuracyPredictor
from supernet_export.spaces.base import COST_NAMES, DesignSpace, Genomes

Floats = NDArray[np.float64]

#: Bytes of a model file beyond its weights, per building block: names, attributes, the graph. An upper estimate for
#: ONNX and TFLite files of fp32 subnets.
FILE_BYTES_PER_SLOT = 2500
_MACS_COLUMNS = [i for i, name in enumerate(COST_NAMES) if name.startswith("macs_")]


class AccuracyModel(Protocol):
    """Foretells top-1 accuracy."""

    def predict(self, genomes: Genomes) -> NDArray[np.floating]:
        """Top-1 fractions of canonical genomes (n, G), shape (n,)."""

    def gradient(self, genomes: Genomes) -> NDArray[np.floating] | None:
        """Its derivative with respect to the genomes' one-hot form, (n, F); None where it has none."""


class PredictedAccuracy:
    """An accuracy predictor over a design space."""

    def __init__(self, space: DesignSpace, predictor: AccuracyPredictor) -> None:
        width = space.one_hot(space.smallest()).shape[1]
        if width != predictor.features:
            raise UsageError(
                f"{space.name} has {width} one-hot features and the accuracy predictor takes {predictor.features}: "
                "it was fitted for another design space"
            )
        self._space, self._predictor = space, predictor

    def predict(self, genomes: Genomes) -> NDArray[np.floating]:
        return self._predictor.predict(self._space.one_hot(genomes))

    def gradient(self, genomes: Genomes) -> NDArray[np.floating] | None:
        return self._predictor.gradient(self._space.one_hot(genomes))


class KnownAccuracy:
    """Exact values where they are known, a model's elsewhere; without a model, only known subnets can win."""

    def __init__(self, genomes: Genomes, accuracy: Floats, base: AccuracyModel | None = None) -> None:
        """`accuracy` (n,) as fractions of the canonical `genomes` (n, G)."""
        keys = genome_keys(genomes)
        order = np.argsort(keys)
        self._keys, self._accuracy = keys[order], np.asarray(accuracy, dtype=np.float64)[order]
        self._base = base
        #: The only subnets that can win; None where a model stands behind the known ones.
        self.candidates: Genomes | None = genomes if base is None else None

    def predict(self, genomes: Genomes) -> NDArray[np.floating]:
        keys = genome_keys(genomes)
        place = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        other = self._base.predict(genomes) if self._base is not None else np.full(len(genomes), -np.inf)
        return np.where(self._keys[place] == keys, self._accuracy[place], other)

    def gradient(self, genomes: Genomes) -> NDArray[np.floating] | None:
        return None if self._base is None else self._base.gradient(genomes)


@dataclass(frozen=True)
class Bounds:
    """What a subnet may cost beside its latency; None where it does not matter."""

    parameters: float | None = None  #: weights and biases, batch norm folded
    macs: float | None = None  #: multiply-accumulates of one image
    peak_activation_bytes: float | None = None  #: fp32, one image
    model_bytes: float | None = None  #: size of the fp32 model file, estimated from above

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise UsageError(f"the bound on {field.name} must be a number above 0; found {value:g}")

    def costs(self, space: DesignSpace, genomes: Genomes) -> dict[str, tuple[Floats, float]]:
        """Per bound that is set: the genomes' costs (n,) and the bound."""
        found: dict[str, tuple[Floats, float]] = {}
        if self.parameters is not None:
            found["parameters"] = space.parameters(genomes), self.parameters
        if self.macs is not None:
            found["macs"] = space.macs(genomes), self.macs
        if self.peak_activation_bytes is not None:
            found["peak_activation_bytes"] = space.peak_activation_bytes(genomes), self.peak_activation_bytes
        if self.model_bytes is not None:
            found["model_bytes"] = model_bytes(space, genomes), self.model_bytes
        return found

    def slot_tables(self, space: DesignSpace) -> list[tuple[SlotTables, float]]:
        """The additive ones of the bounds that are set: what each slot's variants cost, and the bound."""
        present, parameters = (
            [table[:, COST_NAMES.index(name)] for table in space.slot_costs] for name in ("present", "parameters")
        )
        macs = [table[:, _MACS_COLUMNS].sum(axis=1) for table in space.slot_costs]
        files = [
            4.0 * weights + FILE_BYTES_PER_SLOT * there for weights, there in zip(parameters, present, strict=True)
        ]
        every = ((self.parameters, parameters), (self.macs, macs), (self.model_bytes, files))
        return [((0.0, tuple(tables)), bound) for bound, tables in every if bound is not None]

    def banned(self, space: DesignSpace) -> list[NDArray[np.bool_]]:
        """Per slot, the variants that break a bound by themselves."""
        column = COST_NAMES.index("peak_bytes")
        most = math.inf if self.peak_activation_bytes is None else self.peak_activation_bytes
        return [table[:, column] > most for table in space.slot_costs]

    def met(self, space: DesignSpace, genomes: Genomes) -> NDArray[np.bool_]:
        """Which genomes keep every bound, (n,)."""
        kept = np.ones(len(genomes), dtype=np.bool_)
        for cost, bound in self.costs(space, genomes).values():
            kept &= cost <= bound
        return kept


def model_bytes(space: DesignSpace, genomes: Genomes) -> Floats:
    """Size of the fp32 model files, estimated from above, (n,)."""
    column = COST_NAMES.index("present")
    chosen = space.slots(genomes)
    present = sum(table[chosen[:, s], column] for s, table in enumerate(space.slot_costs))
    return np.asarray(4.0 * space.parameters(genomes) + FILE_BYTES_PER_SLOT * present)


@dataclass(frozen=True)
class Winner:
    """The most accurate subnet found for a target."""

    target_ms: float
    genome: NDArray[np.int16]
    architecture: Architecture
    accuracy: float  #: predicted top-1, a fraction
    latency_ms: float  #: predicted, or measured where it was known


class Problem:
    """A design space with its accuracy and latency models and bounds; counts what is evaluated."""

    def __init__(
        self,
        space: DesignSpace,
        accuracy: AccuracyModel | AccuracyPredictor,
        latency: LatencyModel,
        bounds: Bounds | None = None,
    ) -> None:
        self.space = space
        self.accuracy: AccuracyModel = (
            PredictedAccuracy(space, accuracy) if isinstance(accuracy, AccuracyPredictor) else accuracy
        )
        self.latency = latency
        self.bounds = bounds or Bounds()
        self.bounded = self.bounds != Bounds()
        self.evaluations = 0
        self._fastest: tuple[NDArray[np.int16], float] | None = None
        constant_ms, tables = latency.slot_tables()
        #: The additive model that proposals are made from.
        self.table = SlotTableLatency(space, constant_ms, tables)

    def latency_ms(self, genomes: Genomes) -> Floats:
        """Latency of canonical genomes, (n,); infinite where a bound is broken."""
        found = self.latency.predict(genomes)
        return np.where(self.bounds.met(self.space, genomes), found, np.inf) if self.bounded else found

    def top1(self, genomes: Genomes) -> Floats:
        """Predicted accuracy of canonical genomes, (n,), fractions."""
        self.evaluations += len(genomes)
        return np.asarray(self.accuracy.predict(genomes), dtype=np.float64)

    def gradient(self, genomes: Genomes) -> NDArray[np.float32]:
        """Derivative of the predicted accuracy with respect to the one-hot form of canonical genomes, (n, F)."""
        found = self.accuracy.gradient(genomes)
        if found is None:
            raise UsageError("this accuracy model has no gradient; search with the evolution engine")
        return np.asarray(found, dtype=np.float32)

    # -- what is feasible at all --------------------------------------------------------------------------------

    def fastest(self) -> tuple[NDArray[np.int16], float]:
        """The fastest subnet that coordinate descent finds from the smallest, and its milliseconds.

        Exact for block tables up to the choice within one block. Infinite where it breaks a bound.
        """
        if self._fastest is None:
            self._fastest = self._descend()
        return self._fastest

    def _descend(self) -> tuple[NDArray[np.int16], float]:
        moves = _single_gene_moves(self.space)
        starts = np.repeat(self.space.smallest(), len(self.space.resolutions), axis=0)
        starts[:, 0] = np.arange(len(starts)) % int(self.space.cardinalities[0])
        genomes = self.space.canonical(starts)
        best = self.latency_ms(genomes)
        while True:
            neighbours = np.repeat(genomes, len(moves), axis=0)
            gene, value = np.tile(moves, (len(genomes), 1)).T
            neighbours[np.arange(len(neighbours)), gene] = value
            neighbours = self.space.canonical(neighbours.astype(np.int16))
            latency = self.latency_ms(neighbours).reshape(len(genomes), -1)
            choice = latency.argmin(axis=1)
            better = latency.min(axis=1) < best
            if not better.any():
                winner = int(best.argmin())
                return genomes[winner], float(best[winner])
            chosen = neighbours.reshape(len(genomes), len(moves), -1)[np.arange(len(genomes)), choice]
            genomes = np.where(better[:, None], chosen, genomes)
            best = np.where(better, latency.min(axis=1), best)

    def infeasible(self, target_ms: float) -> InfeasibleTargetError:
        """The error that says why nothing meets the target."""
        genome, fastest_ms = self.fastest()
        (architecture,) = self.space.decode(genome[None])
        described = f"d={list(architecture.d)} r={architecture.r} ({architecture.fingerprint})"
        if math.isfinite(fastest_ms):
            return InfeasibleTargetError(
                f"no subnet of {self.space.name} is within {target_ms:g} ms: the fastest one found takes "
                f"{fastest_ms:.4g} ms, {described}; raise the target to at least {math.ceil(fastest_ms * 100) / 100} ms"
            )
        broken = self.bounds.costs(self.space, genome[None])
        which = ", ".join(
            f"{name} {float(cost[0]):.4g} (bound {bound:.4g})"
            for name, (cost, bound) in broken.items()
            if cost[0] > bound
        )
        fastest_ms = float(self.latency.predict(genome[None])[0])
        return InfeasibleTargetError(
            f"no subnet of {self.space.name} keeps the bounds: the smallest one, which takes {fastest_ms:.4g} ms, "
            f"{described}, has {which or 'been ruled out'}; raise the bounds"
        )


def _single_gene_moves(space: DesignSpace) -> NDArray[np.intp]:
    """Every (gene, value), shape (sum of cardinalities, 2)."""
    return np.array([(g, v) for g, count in enumerate(space.cardinalities) for v in range(int(count))], dtype=np.intp)


def check_targets(targets_ms: Sequence[float]) -> tuple[float, ...]:
    """The targets as floats; `UsageError` where one is not a latency."""
    found = tuple(float(target) for target in targets_ms)
    wrong = [target for target in found if not (math.isfinite(target) and target > 0)]
    if wrong or not found:
        raise UsageError(
            f"latency targets must be milliseconds above 0, at least one; found {wrong or 'none'}: give, say, 15,20,30"
        )
    return found


def json_bounds(bounds: Bounds) -> Mapping[str, float]:
    """The bounds that are set, by name."""
    return {field.name: value for field in fields(bounds) if (value := getattr(bounds, field.name)) is not None}
