"""The baseline: OFA's evolutionary search, vectorised.

Source of the algorithm and its parameters: Cai et al., *Once-for-All* (ICLR 2020), the `EvolutionFinder` of the `ofa`
package; of the generations for further targets: arXiv 2012.06748.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fleetnas.coordinator.search.problem import Problem
from fleetnas.supernet_export.spaces.base import Genomes

Floats = NDArray[np.float64]

#: Rounds of proposals to fill a generation with subnets within the target, before found ones are repeated.
_TRIES = 20


@dataclass(frozen=True)
class EvolutionSettings:
    """The evolution engine, with OFA's parameters."""

    name: ClassVar[str] = "evolution"

    population: int = 100
    generations: int = 500
    further_generations: int = 100  #: for each target after the first, when it starts from the one before
    parent_ratio: float = 0.25
    mutation_probability: float = 0.1  #: of each gene
    mutation_ratio: float = 0.5  #: share of mutants among the offspring; the rest are crossovers


@dataclass(frozen=True)
class Population:
    """Evaluated subnets, best first: genomes (n, G), top1 and latency_ms (n,)."""

    genomes: Genomes
    top1: Floats
    latency_ms: Floats


class EvolutionEngine:
    """Evolves a population within one target; deterministic given the generator."""

    def __init__(self, problem: Problem, rng: np.random.Generator, settings: EvolutionSettings | None = None) -> None:
        """`rng` is the source of all randomness."""
        self.problem, self.rng = problem, rng
        self.settings = settings or EvolutionSettings()

    def run(self, target_ms: float, start: Genomes | None = None, generations: int | None = None) -> Population:
        """The last parents, best first; the start, if any, is filled up with random subnets within the target."""
        settings, space, rng = self.settings, self.problem.space, self.rng
        parents = self._first(target_ms, start)
        keep = max(1, round(settings.parent_ratio * settings.population))
        mutants = round(settings.mutation_ratio * settings.population)
        for _ in range(settings.generations if generations is None else generations):
            parents = Population(parents.genomes[:keep], parents.top1[:keep], parents.latency_ms[:keep])

            def mutate(count: int, genomes: Genomes = parents.genomes) -> Genomes:
                chosen = genomes[rng.integers(0, len(genomes), count)]
                return space.mutate(chosen, settings.mutation_probability, rng)

            def cross(count: int, genomes: Genomes = parents.genomes) -> Genomes:
                pairs = genomes[rng.integers(0, len(genomes), (2, count))]
                return space.crossover(pairs[0], pairs[1], rng)

            offspring = [
                self._within(target_ms, mutate, mutants, parents.genomes),
                self._within(target_ms, cross, settings.population - mutants, parents.genomes),
            ]
            parents = self._ranked(np.concatenate(offspring), parents)
        return parents

    def _first(self, target_ms: float, start: Genomes | None) -> Population:
        """The first population: the start and random subnets within the target, or mutants of the fastest one."""
        space, size = self.problem.space, self.settings.population
        genomes = start if start is not None else np.zeros((0, space.gene_count), np.int16)
        genomes = genomes[self.problem.latency_ms(genomes) <= target_ms][:size]
        if len(genomes) < size:
            fastest, fastest_ms = self.problem.fastest()
            if fastest_ms > target_ms:
                raise self.problem.infeasible(target_ms)
            drawn = self._within(
                target_ms, lambda count: space.sample(count, self.rng), size - len(genomes), fastest[None]
            )
            genomes = np.concatenate([genomes, drawn])
        return self._ranked(genomes, None)

    def _within(self, target_ms: float, propose: Callable[[int], Genomes], count: int, fallback: Genomes) -> Genomes:
        """`count` proposals within the target; after `_TRIES` rounds the rest is drawn from `fallback`."""
        found = np.zeros((0, fallback.shape[1]), np.int16)
        for _ in range(_TRIES):
            if len(found) >= count:
                break
            proposed = propose(2 * count)
            found = np.concatenate([found, proposed[self.problem.latency_ms(proposed) <= target_ms]])
        if len(found) < count:
            found = np.concatenate([found, fallback[self.rng.integers(0, len(fallback), count - len(found))]])
        return found[:count]

    def _ranked(self, genomes: Genomes, parents: Population | None) -> Population:
        top1, latency_ms = self.problem.top1(genomes), self.problem.latency_ms(genomes)
        if parents is not None:
            genomes = np.concatenate([parents.genomes, genomes])
            top1 = np.concatenate([parents.top1, top1])
            latency_ms = np.concatenate([parents.latency_ms, latency_ms])
        order = np.lexsort((latency_ms, -top1))
        return Population(genomes[order], top1[order], latency_ms[order])
