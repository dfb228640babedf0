"""The archive of a search: evaluated subnets, shared by all targets."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fleetnas.coordinator.search.candidate_table import genome_keys
from fleetnas.coordinator.search.problem import Problem
from fleetnas.supernet_export.spaces.base import Genomes

Floats = NDArray[np.float64]


class Pool:
    """Distinct evaluated subnets within the largest target: genomes (n, G), top1 (n,) and latency_ms (n,)."""

    def __init__(self, problem: Problem, targets_ms: Sequence[float]) -> None:
        """Start empty; subnets beyond the largest of `targets_ms` are not kept."""
        self.problem = problem
        self.targets_ms = tuple(targets_ms)
        space = problem.space
        self.genomes: Genomes = np.zeros((0, space.gene_count), np.int16)
        self.top1: Floats = np.zeros(0)
        self.latency_ms: Floats = np.zeros(0)
        self._gradient: NDArray[np.float32] = np.zeros((0, space.one_hot(space.smallest()).shape[1]), np.float32)
        self._differentiated: NDArray[np.bool_] = np.zeros(0, dtype=np.bool_)
        self._seen: set[int] = set()

    def add(self, genomes: Genomes) -> NDArray[np.bool_]:
        """Evaluate the canonical genomes that are new and within the largest target; returns a mask of these, (n,)."""
        return add_together([self], genomes, np.zeros(len(genomes), dtype=np.intp))

    def undifferentiated(self, rows: NDArray[np.intp]) -> NDArray[np.intp]:
        """Of `rows`, those without a gradient, ascending and once each."""
        marked = np.zeros(len(self.genomes), dtype=np.bool_)
        marked[rows] = True
        return np.flatnonzero(marked & ~self._differentiated)

    def set_gradients(self, rows: NDArray[np.intp], gradients: NDArray[np.float32]) -> None:
        """Keep the gradients (k, F) of `rows` (k,)."""
        self._gradient[rows] = gradients
        self._differentiated[rows] = True

    def gradients(self, rows: NDArray[np.intp]) -> NDArray[np.float32]:
        """Gradient of the accuracy with respect to the one-hot genomes of `rows`, which must be known."""
        return self._gradient[rows]

    def unseen(self, genomes: Genomes) -> NDArray[np.bool_]:
        """Mark the genomes as proposed; returns a mask of those that were not before, (n,)."""
        found = np.zeros(len(genomes), dtype=np.bool_)
        for row, key in enumerate(genome_keys(genomes).tolist()):
            if key not in self._seen:
                self._seen.add(key)
                found[row] = True
        return found

    def merge(self, other: Pool) -> None:
        """Add the subnets of another pool of the same problem."""
        mine = set(genome_keys(self.genomes).tolist())
        rows = [row for row, key in enumerate(genome_keys(other.genomes).tolist()) if key not in mine]
        self._seen |= other._seen
        self.append(
            other.genomes[rows],
            other.top1[rows],
            other.latency_ms[rows],
            other._gradient[rows],
            other._differentiated[rows],
        )

    def append(
        self,
        genomes: Genomes,
        top1: Floats,
        latency_ms: Floats,
        gradient: NDArray[np.float32] | None = None,
        differentiated: NDArray[np.bool_] | None = None,
    ) -> None:
        """Add evaluated subnets: genomes (n, G), top1 and latency_ms (n,), and gradients (n, F) where known."""
        if gradient is None:
            gradient = np.zeros((len(genomes), self._gradient.shape[1]), np.float32)
        if differentiated is None:
            differentiated = np.zeros(len(genomes), dtype=np.bool_)
        self.genomes = np.concatenate([self.genomes, genomes])
        self.top1 = np.concatenate([self.top1, top1])
        self.latency_ms = np.concatenate([self.latency_ms, latency_ms])
        self._gradient = np.concatenate([self._gradient, gradient])
        self._differentiated = np.concatenate([self._differentiated, differentiated])

    def elites(self, targets_ms: Sequence[float], count: int) -> list[NDArray[np.intp]]:
        """Per target, the `count` most accurate within it, best first; of equals the fastest first."""
        order = np.lexsort((self.latency_ms, -self.top1))
        latency_ms = self.latency_ms[order]
        return [order[np.flatnonzero(latency_ms <= target)[:count]] for target in targets_ms]

    def trim(self, count: int) -> None:
        """Drop the subnets that are not among the `count` best of any target."""
        kept = np.unique(np.concatenate(self.elites(self.targets_ms, count)))
        self.genomes, self.top1, self.latency_ms = self.genomes[kept], self.top1[kept], self.latency_ms[kept]
        self._gradient, self._differentiated = self._gradient[kept], self._differentiated[kept]


def add_together(pools: Sequence[Pool], genomes: Genomes, pool_of: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Evaluate, at once for all pools, the genomes new to their pool and within the largest target.

    Args:
        pools: of one problem.
        genomes: canonical, (n, G).
        pool_of: index into `pools`, ascending, (n,).

    Returns: a mask of the evaluated rows, (n,).
    """
    problem, bounds = pools[0].problem, np.searchsorted(pool_of, np.arange(len(pools) + 1))
    parts = [slice(start, stop) for start, stop in itertools.pairwise(bounds)]
    new = np.concatenate([pool.unseen(genomes[part]) for pool, part in zip(pools, parts, strict=True)])
    latency_ms = problem.latency_ms(genomes)
    new &= latency_ms <= max(pools[0].targets_ms)
    if new.any():
        top1 = np.zeros(len(genomes))
        top1[new] = problem.top1(genomes[new])
        for pool, part in zip(pools, parts, strict=True):
            kept = new[part]
            pool.append(genomes[part][kept], top1[part][kept], latency_ms[part][kept])
    return new


def differentiate_together(pools: Sequence[Pool], rows: Sequence[NDArray[np.intp]]) -> None:
    """Compute the missing gradients of each pool's `rows`, at once for all pools."""
    missing = [pool.undifferentiated(wanted) for pool, wanted in zip(pools, rows, strict=True)]
    genomes = np.concatenate([pool.genomes[found] for pool, found in zip(pools, missing, strict=True)])
    if not len(genomes):
        return
    gradients, start = pools[0].problem.gradient(genomes), 0
    for pool, found in zip(pools, missing, strict=True):
        pool.set_gradients(found, gradients[start : start + len(found)])
        start += len(found)
