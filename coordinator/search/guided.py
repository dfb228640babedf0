"""The default engine: evolution whose offspring are optima of a linear model, not random draws.

The accuracy predictor is piecewise linear, so its gradient gives the gain of every single choice at once; averaged over
the best subnets found so far, it predicts whole recombinations. Each offspring is the optimum of that linear model
within the target, with a penalty on the distance to its two parents. All targets share one archive.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fleetnas.coordinator.search.gene_knapsack import GeneKnapsack
from fleetnas.coordinator.search.knapsack import Knapsack, MBConvKnapsack, Step
from fleetnas.coordinator.search.latency import SlotTableLatency
from fleetnas.coordinator.search.pool import Pool, add_together, differentiate_together
from fleetnas.coordinator.search.problem import Problem
from fleetnas.supernet_export.spaces.base import Genomes
from fleetnas.supernet_export.spaces.mbconv import MBConvSpace

Floats32 = NDArray[np.float32]

DEFAULT_ROUNDS = 40
#: A target whose share of new offspring is smaller has nothing left to recombine.
_EXHAUSTED = 0.02
_LEAST_OFFSPRING = 2
_LEAST_GENERATION = 30
#: Pools that advance in step: their generations are one batch.
_POOLS_TOGETHER = 8


@dataclass(frozen=True)
class GuidedSettings:
    """The guided engine. Costs of moving are in standard deviations of random subnets' accuracy."""

    name: ClassVar[str] = "guided"

    rounds: int = DEFAULT_ROUNDS  #: generations
    #: Separate searches that are merged pair by pair, each union being searched for twice as many rounds: twice the
    #: islands cost twice the time, and find better subnets than twice the rounds.
    islands: int = 1
    seeds: int = 30  #: random subnets to begin with
    elites: int = 10  #: parents per target
    offspring: int = 10  #: per target and generation; more where there are few targets
    blend: int = 4  #: subnets whose gradients are averaged for one offspring
    move_costs: tuple[float, ...] = (0.02, 0.08)
    mate_share: float = 0.5  #: cost of taking the mate's choice, relative to a move
    resolution_mutation: float = 0.1
    trim_every: int = 10


class GuidedEngine:
    """Searches one problem; deterministic given the generator."""

    def __init__(self, problem: Problem, rng: np.random.Generator, settings: GuidedSettings | None = None) -> None:
        """`rng` is the source of all randomness."""
        self.problem, self.rng = problem, rng
        self.settings = settings or GuidedSettings()
        bounds = problem.bounds.slot_tables(problem.space)
        self._bound_limits = [bound for _, bound in bounds]
        self._knapsack = _knapsack(problem, [problem.table.slot_tables(), *(tables for tables, _ in bounds)])
        self._accuracy_deviation = 0.0

    def start(self, targets_ms: Sequence[float], pool: Pool) -> None:
        """First proposals for every target, from the gradients of random subnets."""
        seeds = self.problem.space.sample(self.settings.seeds, self.rng)
        gradient = self.problem.gradient(seeds)
        self._accuracy_deviation = float(self.problem.top1(seeds).std())
        targets = np.tile(np.asarray(targets_ms, dtype=np.float64), len(seeds))
        source = np.repeat(np.arange(len(seeds)), len(targets_ms))
        nothing = np.zeros(len(targets), np.float32)
        step = self._step(
            seeds[source], seeds[source], gradient[source], targets, nothing, nothing, self._guess_resolution(targets)
        )
        pool.add(self._knapsack.propose(step))

    def run(self, targets_ms: Sequence[float], pools: Sequence[Pool], generations: int) -> None:
        """Improve each pool for the targets; ends early when nothing new is proposed any more."""
        for first in range(0, len(pools), _POOLS_TOGETHER):
            group = pools[first : first + _POOLS_TOGETHER]
            activity = np.ones((len(group), len(targets_ms)))
            for generation in range(generations):
                if generation % self.settings.trim_every == self.settings.trim_every - 1:
                    for pool in group:
                        pool.trim(self.settings.elites)
                activity = 0.5 * (activity + self._generation(targets_ms, group, activity))
                if activity.max() < _EXHAUSTED:
                    break
            for pool in group:
                pool.trim(self.settings.elites)

    def merge(self, targets_ms: Sequence[float], pools: Sequence[Pool], generations: int) -> Pool:
        """Merge pools pair by pair and improve each union, in which subnets of both cross."""
        while len(pools) > 1:
            for pool, other in zip(pools[::2], pools[1::2], strict=False):
                pool.merge(other)
            merged = len(pools) // 2
            pools = pools[::2]
            self.run(targets_ms, pools[:merged], generations)
        return pools[0]

    def _generation(
        self, targets_ms: Sequence[float], pools: Sequence[Pool], activity: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Breed one generation; returns the share of new offspring, (pools, targets). Less active targets get fewer."""
        settings, rng = self.settings, self.rng
        elites = [pool.elites(targets_ms, settings.elites) for pool in pools]
        sizes = np.array([[len(elite) for elite in of_pool] for of_pool in elites])
        counts = np.where(sizes > 0, self._offspring(activity), 0)
        place = np.repeat(np.arange(counts.size), counts.ravel())
        pool_of, target_of = np.divmod(place, len(targets_ms))
        if not len(place):
            return np.zeros(counts.shape)
        # Per offspring: two parents, and more subnets whose gradients are averaged with theirs.
        lottery = (rng.random((max(settings.blend, 2), len(place))) * sizes.ravel()[place]).astype(np.intp)
        padded = np.zeros((counts.size, settings.elites), np.intp)
        for row, elite in enumerate(itertools.chain.from_iterable(elites)):
            padded[row, : len(elite)] = elite
        drawn = padded[place, lottery]
        parts = [slice(*np.searchsorted(pool_of, (i, i + 1))) for i in range(len(pools))]
        blended = drawn[: settings.blend]
        differentiate_together(pools, [blended[:, part] for part in parts])
        parents = np.concatenate(
            [pool.genomes[drawn[:2, part]] for pool, part in zip(pools, parts, strict=True)], axis=1
        )
        gradient = np.concatenate(
            [pool.gradients(blended[:, part]).mean(axis=0) for pool, part in zip(pools, parts, strict=True)]
        )
        move_cost = (self._accuracy_deviation * rng.choice(settings.move_costs, len(place))).astype(np.float32)
        resolution = np.where(rng.random(len(place)) < 0.5, parents[0, :, 0], parents[1, :, 0]).astype(np.intp)
        last = len(self.problem.space.resolutions) - 1
        moved = np.clip(resolution + rng.choice((-1, 1), len(place)), 0, last)
        resolution = np.where(rng.random(len(place)) < settings.resolution_mutation, moved, resolution)
        limit_ms = np.asarray(targets_ms, dtype=np.float64)[target_of] * self._table_per_truth(parents[0])
        step = self._step(
            parents[0], parents[1], gradient, limit_ms, move_cost, settings.mate_share * move_cost, resolution
        )
        new = add_together(pools, self._knapsack.propose(step), pool_of)
        share = np.bincount(place, new, counts.size).reshape(counts.shape) / np.maximum(counts, 1)
        return np.asarray(share)

    def _offspring(self, activity: NDArray[np.float64]) -> NDArray[np.intp]:
        """Number of offspring per pool and target, (pools, targets)."""
        # Below a certain number a generation costs as much as one of that number.
        most = max(self.settings.offspring, -(-_LEAST_GENERATION // activity.size))
        found: NDArray[np.intp] = np.clip(np.ceil(most * activity), _LEAST_OFFSPRING, most).astype(np.intp)
        return found

    def _step(
        self,
        mothers: Genomes,
        fathers: Genomes,
        gradient: Floats32,
        limit_ms: NDArray[np.float64],
        move_cost: Floats32,
        mate_cost: Floats32,
        resolution: NDArray[np.intp],
    ) -> Step:
        n, bounds = len(mothers), self._bound_limits
        limits = np.column_stack([limit_ms, *(np.full(n, bound) for bound in bounds)]).astype(np.float32)
        if bounds:
            weights = self.rng.dirichlet(np.full(1 + len(bounds), 0.5), n).astype(np.float32)
        else:
            weights = np.ones((n, 1), np.float32)
        return Step(mothers, fathers, gradient, limits, weights, move_cost, mate_cost.astype(np.float32), resolution)

    def _guess_resolution(self, targets_ms: NDArray[np.float64]) -> NDArray[np.intp]:
        """Resolutions that grow with the target, scattered."""
        space = self.problem.space
        fastest, slowest = self.problem.table.predict(np.concatenate([space.smallest(), space.largest()]))
        share = np.clip((targets_ms - fastest) / max(slowest - fastest, 1e-9), 0.0, 1.0)
        guess = share * 1.5 * len(space.resolutions) + self.rng.normal(0.0, 1.0, len(targets_ms))
        found: NDArray[np.intp] = np.clip(np.round(guess), 0, len(space.resolutions) - 1).astype(np.intp)
        return found

    def _table_per_truth(self, parents: Genomes) -> float:
        """Median ratio of the additive model to the latency model over the parents; 1 where that is additive."""
        if isinstance(self.problem.latency, SlotTableLatency):
            return 1.0
        return float(np.median(self.problem.table.predict(parents) / self.problem.latency_ms(parents)))


def _knapsack(problem: Problem, costs: Sequence[tuple[float, tuple[NDArray[np.float64], ...]]]) -> Knapsack:
    if isinstance(problem.space, MBConvSpace):
        return MBConvKnapsack(problem.space, costs, problem.bounds.banned(problem.space))
    return GeneKnapsack(problem.space, costs, problem.bounds.banned(problem.space))
