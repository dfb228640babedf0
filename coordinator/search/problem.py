"""The search problem: the most accurate subnet within a latency target and further bounds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fleetnas.coordinator.records.bounds import Bounds
from fleetnas.coordinator.search.candidate_table import genome_keys
from fleetnas.coordinator.search.latency import LatencyModel, SlotTableLatency
from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.fleet_protocol.cores import core_count
from fleetnas.fleet_protocol.errors import InfeasibleTargetError, UsageError
from fleetnas.supernet_export.accuracy.model import AccuracyPredictor
from fleetnas.supernet_export.spaces.base import DesignSpace, Genomes

Floats = NDArray[np.float64]

#: Genomes of a whole space that are evaluated at a time; an accuracy predictor takes as many through its layers.
_PART_ROWS = 512


class AccuracyModel(Protocol):
    """Predicts top-1 accuracy."""

    def predict(self, genomes: Genomes) -> NDArray[np.floating]:
        """Top-1 fractions of canonical genomes (n, G), shape (n,)."""

    def gradient(self, genomes: Genomes) -> NDArray[np.floating] | None:
        """Its derivative with respect to the genomes' one-hot form, (n, F); None where it has none."""


class PredictedAccuracy:
    """An accuracy predictor over a design space."""

    def __init__(self, space: DesignSpace, predictor: AccuracyPredictor) -> None:
        """`UsageError` where the predictor was fitted for another design space."""
        width = space.one_hot(space.smallest()).shape[1]
        if width != predictor.features:
            raise UsageError(
                f"{space.name} has {width} one-hot features and the accuracy predictor takes {predictor.features}: "
                "it was fitted for another design space"
            )
        self.space, self._predictor = space, predictor

    def predict(self, genomes: Genomes) -> NDArray[np.floating]:
        """Top-1 fractions of canonical genomes (n, G), shape (n,)."""
        return self._predictor.predict(self.space.one_hot(genomes))

    def gradient(self, genomes: Genomes) -> NDArray[np.floating] | None:
        """Derivative with respect to the genomes' one-hot form, (n, F); None where there is none."""
        return self._predictor.gradient(self.space.one_hot(genomes))


class TabularAccuracy:
    """Tabular accuracy: exact values of evaluated subnets, a model's for all others.

    Without a model, only evaluated subnets can win.
    """

    def __init__(self, genomes: Genomes, accuracy: Floats, base: AccuracyModel | None = None) -> None:
        """`accuracy` (n,) as fractions of the canonical `genomes` (n, G)."""
        keys = genome_keys(genomes)
        order = np.argsort(keys)
        self._keys, self._accuracy = keys[order], np.asarray(accuracy, dtype=np.float64)[order]
        self._base = base
        #: The only subnets that can win; None where a model predicts the others.
        self.candidates: Genomes | None = genomes if base is None else None

    def predict(self, genomes: Genomes) -> NDArray[np.floating]:
        """Top-1 fractions of canonical genomes (n, G), shape (n,)."""
        keys = genome_keys(genomes)
        place = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        other = self._base.predict(genomes) if self._base is not None else np.full(len(genomes), -np.inf)
        return np.where(self._keys[place] == keys, self._accuracy[place], other)

    def gradient(self, genomes: Genomes) -> NDArray[np.floating] | None:
        """Derivative with respect to the genomes' one-hot form, (n, F); None where there is none."""
        return None if self._base is None else self._base.gradient(genomes)


class CachedAccuracy:
    """A cache in front of an accuracy model, for many device settings that ask about the same subnets.

    Subnets are predicted one by one, so that no prediction depends on the others of its batch.
    """

    def __init__(self, base: AccuracyModel) -> None:
        self._base = base
        self._cache: dict[bytes, float] = {}

    def predict(self, genomes: Genomes) -> NDArray[np.floating]:
        """Top-1 fractions of canonical genomes (n, G), shape (n,)."""
        data, width = genomes.tobytes(), genomes.itemsize * genomes.shape[1]
        found = [self._cache.get(data[start : start + width]) for start in range(0, len(data), width)]
        if None in found:
            found = [self._of(genome) if known is None else known for genome, known in zip(genomes, found, strict=True)]
        return np.array(found, dtype=np.float64)

    def gradient(self, genomes: Genomes) -> NDArray[np.floating] | None:
        """Derivative with respect to the genomes' one-hot form, (n, F); None where there is none."""
        return self._base.gradient(genomes)

    def _of(self, genome: NDArray[np.int16]) -> float:
        key = genome.tobytes()
        found = self._cache.get(key)
        if found is None:
            found = self._cache[key] = float(self._base.predict(genome[None])[0])
        return found


@dataclass(frozen=True)
class Winner:
    """The most accurate subnet found for a target."""

    target_ms: float
    genome: NDArray[np.int16]
    architecture: Architecture
    accuracy: float  #: predicted top-1, a fraction
    latency_ms: float  #: predicted, or measured where it was known


class Problem:
    """A design space with its accuracy and latency models and bounds; counts evaluated subnets."""

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

    def top1_of_all(self, genomes: Genomes) -> Floats:
        """Predicted accuracy of a whole space, (n,): in parts, one thread per core that this process may use."""
        self.evaluations += len(genomes)
        cores = core_count()
        # As many parts as rows demand, and as many for each core.
        count = min(len(genomes), cores * -(-len(genomes) // (cores * _PART_ROWS)))
        with ThreadPoolExecutor(cores) as pool:
            found = pool.map(self.accuracy.predict, np.array_split(genomes, count))
            return np.concatenate([np.asarray(top1, dtype=np.float64) for top1 in found])

    def gradient(self, genomes: Genomes) -> NDArray[np.float32]:
        """Derivative of the predicted accuracy with respect to the one-hot form of canonical genomes, (n, F)."""
        found = self.accuracy.gradient(genomes)
        if found is None:
            raise UsageError("this accuracy model has no gradient; search with the evolution engine")
        return np.asarray(found, dtype=np.float32)

    # -- feasibility -------------------------------------------------------------------------------------------

    def fastest(self) -> tuple[NDArray[np.int16], float]:
        """Find the fastest subnet by coordinate descent from the smallest; returns its genome and milliseconds.

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
        """Make the error for a target that no subnet meets; it names the fastest subnet."""
        genome, fastest_ms = self.fastest()
        (architecture,) = self.space.decode(genome[None])
        described = f"d={list(architecture.d)} r={architecture.r} ({architecture.fingerprint})"
        within = f" that has {self.bounds}" if self.bounded else ""
        if not math.isfinite(fastest_ms):
            return InfeasibleTargetError(f"every subnet of {self.space.name}{within} was ruled out; there is no other")
        return InfeasibleTargetError(
            f"no subnet of {self.space.name}{within} is within {target_ms:g} ms: the fastest one found takes "
            f"{fastest_ms:.4g} ms, {described}; raise the target to at least {math.ceil(fastest_ms * 100) / 100} ms"
        )


def _single_gene_moves(space: DesignSpace) -> NDArray[np.intp]:
    """List every (gene, value), shape (sum of cardinalities, 2)."""
    return np.array([(g, v) for g, count in enumerate(space.cardinalities) for v in range(int(count))], dtype=np.intp)


def check_targets(targets_ms: Sequence[float]) -> tuple[float, ...]:
    """Return the targets as floats; `UsageError` where one is not a latency above 0 ms."""
    found = tuple(float(target) for target in targets_ms)
    wrong = [target for target in found if not (math.isfinite(target) and target > 0)]
    if wrong or not found:
        raise UsageError(
            f"latency targets must be milliseconds above 0, at least one; found {wrong or 'none'}: give, say, 15,20,30"
        )
    return found
