"""The search: strategies over one or many latency targets, with either engine."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fleetnas.coordinator.records.bounds import lowered
from fleetnas.coordinator.records.strategy import Strategy
from fleetnas.coordinator.search.blas import single_threaded_blas
from fleetnas.coordinator.search.evolution import EvolutionEngine, EvolutionSettings
from fleetnas.coordinator.search.guided import GuidedEngine, GuidedSettings
from fleetnas.coordinator.search.pool import Pool
from fleetnas.coordinator.search.problem import Problem, TabularAccuracy, Winner, check_targets
from fleetnas.fleet_protocol.errors import InfeasibleTargetError
from fleetnas.supernet_export.spaces.base import Genomes

Floats = NDArray[np.float64]
EngineSettings = GuidedSettings | EvolutionSettings

_PRUNED = 100
#: Targets within this factor are one step of a chain: a generation has offspring for several at no further cost.
_CLOSE = 1.15
_LARGEST_ENUMERATION = 1_000_000


@dataclass(frozen=True)
class SearchResult:
    """Winners in the order of the targets, and the Pareto front of all evaluated subnets, fastest first."""

    strategy: Strategy
    winners: tuple[Winner, ...]
    front_genomes: Genomes  #: (m, G)
    front_top1: Floats  #: (m,)
    front_latency_ms: Floats  #: (m,)
    evaluations: int  #: subnets whose accuracy was predicted

    @property
    def mean_accuracy(self) -> float:
        """Mean predicted top-1 of the winners, a fraction."""
        return float(np.mean([winner.accuracy for winner in self.winners]))


@dataclass(frozen=True)
class _Evaluated:
    genomes: Genomes
    top1: Floats
    latency_ms: Floats


def search(
    problem: Problem,
    targets_ms: Sequence[float],
    *,
    rng: np.random.Generator,
    strategy: Strategy = Strategy.JOINT,
    engine: EngineSettings | None = None,
    warm_start: Genomes | None = None,
    leave_out_infeasible: bool = False,
) -> SearchResult:
    """Find the most accurate subnets within each latency target.

    Args:
        problem: design space, accuracy and latency models, bounds. The latency model decides alone whether a subnet
            meets a target, and need not be additive.
        targets_ms: one or more latencies in milliseconds, in any order.
        rng: source of all randomness: the same state gives the same result.
        strategy: order of the targets. Where only evaluated subnets can win (`TabularAccuracy` without a model), every
            strategy is `exhaustive`.
        engine: `GuidedSettings` (the default) or `EvolutionSettings`, OFA's baseline, which treats `joint` as
            `bottom-up`.
        warm_start: canonical genomes (n, G) to start from, for example an earlier search's front.
        leave_out_infeasible: search the targets that some subnet meets, if any, instead of raising for the others.

    Raises:
        InfeasibleTargetError: no subnet keeps the bounds, or meets the smallest target; names the smallest or fastest.
        UsageError: a target is no latency, or the space is too large to enumerate.
    """
    targets = check_targets(targets_ms)
    with single_threaded_blas():
        problem.bounds.check(problem.space)
        _, fastest_ms = problem.fastest()
        if leave_out_infeasible:
            targets = tuple(target for target in targets if fastest_ms <= target)
            if not targets:
                nothing = np.zeros((0, problem.space.gene_count), np.int16)
                return SearchResult(strategy, (), nothing, np.zeros(0), np.zeros(0), problem.evaluations)
        if not fastest_ms <= min(targets):
            raise problem.infeasible(min(targets))
        candidates = problem.accuracy.candidates if isinstance(problem.accuracy, TabularAccuracy) else None
        if candidates is not None or strategy is Strategy.EXHAUSTIVE:
            found = _exhaustive(problem, targets, candidates)
        elif isinstance(engine, EvolutionSettings):
            found = _evolved(problem, targets, strategy, rng, warm_start, engine)
        else:
            found = _GuidedSearch(problem, targets, rng, warm_start, engine or GuidedSettings()).run(strategy)
        return _result(problem, strategy, targets, found)


class _GuidedSearch:
    """The strategies over the guided engine."""

    def __init__(
        self,
        problem: Problem,
        targets: tuple[float, ...],
        rng: np.random.Generator,
        warm_start: Genomes | None,
        settings: GuidedSettings,
    ) -> None:
        self._problem, self._rng, self._settings = problem, rng, settings
        self._engine = GuidedEngine(problem, rng, settings)
        self._targets = sorted(set(targets))
        self._rounds, self._islands = settings.rounds, max(1, settings.islands)
        fastest = problem.fastest()[0][None]
        self._seeds = fastest if warm_start is None else np.concatenate([fastest, problem.space.canonical(warm_start)])

    def run(self, strategy: Strategy) -> _Evaluated:
        """Search by a strategy; returns the pools' subnets."""
        if strategy == Strategy.JOINT:
            pools = [self._search(self._targets)]
        elif strategy == Strategy.INDEPENDENT:
            pools = [self._search([target]) for target in self._targets]
        else:
            pools = [self._chained(upwards=strategy == Strategy.BOTTOM_UP)]
        return _Evaluated(
            np.concatenate([pool.genomes for pool in pools]),
            np.concatenate([pool.top1 for pool in pools]),
            np.concatenate([pool.latency_ms for pool in pools]),
        )

    def _new_pool(self, targets: Sequence[float]) -> Pool:
        pool = Pool(self._problem, self._targets)
        pool.add(self._seeds)
        self._engine.start(targets, pool)
        return pool

    def _search(self, targets: Sequence[float]) -> Pool:
        """Search islands for the targets, and merge them into one pool."""
        pools = [self._new_pool(targets) for _ in range(self._islands)]
        self._engine.run(targets, pools, self._rounds)
        return self._engine.merge(targets, pools, 2 * self._rounds)

    def _chained(self, *, upwards: bool) -> Pool:
        """Search target by target, each from the pool of the one before."""
        steps = _close_together(self._targets)
        order = steps if upwards else steps[::-1]
        pool = self._search(order[0])
        for before, step in itertools.pairwise(order):
            if not upwards:
                (elite,) = pool.elites(before[:1], self._settings.elites)
                pool.add(pruned(self._problem, pool.genomes[elite], step[-1], _PRUNED, self._rng))
            # The pool crosses with newcomers that were first improved apart from it.
            newcomers = self._new_pool(step)
            self._engine.run(step, [newcomers], self._rounds // 2)
            pool.merge(newcomers)
            self._engine.run(step, [pool], self._rounds - self._rounds // 2)
        return pool


def _close_together(targets: Sequence[float]) -> list[list[float]]:
    """Return ascending targets in steps, each within `_CLOSE` from its first to its last."""
    steps: list[list[float]] = []
    for target in targets:
        if steps and target <= _CLOSE * steps[-1][0]:
            steps[-1].append(target)
        else:
            steps.append([target])
    return steps


def _evolved(
    problem: Problem,
    targets: tuple[float, ...],
    strategy: Strategy,
    rng: np.random.Generator,
    warm_start: Genomes | None,
    settings: EvolutionSettings,
) -> _Evaluated:
    engine = EvolutionEngine(problem, rng, settings)
    upwards = strategy != Strategy.TOP_DOWN
    ordered = sorted(set(targets), reverse=not upwards)
    given = problem.space.canonical(warm_start) if warm_start is not None else problem.fastest()[0][None]
    start, populations = given, []
    for place, target in enumerate(ordered):
        chained = place > 0 and strategy != Strategy.INDEPENDENT
        population = engine.run(target, start, settings.further_generations if chained else None)
        populations.append(population)
        if strategy == Strategy.INDEPENDENT or place + 1 == len(ordered):
            continue
        if upwards:
            start = np.concatenate([given, population.genomes])
        else:
            drawn = pruned(problem, population.genomes[:1], ordered[place + 1], settings.population, rng)
            start = np.concatenate([given, drawn])
    return _Evaluated(
        np.concatenate([population.genomes for population in populations]),
        np.concatenate([population.top1 for population in populations]),
        np.concatenate([population.latency_ms for population in populations]),
    )


def pruned(problem: Problem, genomes: Genomes, target_ms: float, count: int, rng: np.random.Generator) -> Genomes:
    """Lower random genes of `count` draws from genomes (n, G) until each is within the target; some drop out."""
    drawn = genomes[rng.integers(0, len(genomes), count)]
    found = lowered(problem.space, drawn, lambda these: problem.latency_ms(these) > target_ms, rng)
    return found[problem.latency_ms(found) <= target_ms]


def _exhaustive(problem: Problem, targets: tuple[float, ...], candidates: Genomes | None) -> _Evaluated:
    genomes = problem.space.enumerate(_LARGEST_ENUMERATION) if candidates is None else candidates
    latency_ms = problem.latency_ms(genomes)
    if candidates is not None and not (latency_ms <= min(targets)).any():
        fastest_ms = float(latency_ms.min())
        reachable = f"; the fastest of them takes {fastest_ms:.4g} ms" if np.isfinite(fastest_ms) else ""
        raise InfeasibleTargetError(
            f"none of the {len(candidates)} subnets of {problem.space.name} whose accuracy is known is within "
            f"{min(targets):g} ms{' and the bounds' if problem.bounded else ''}{reachable}; raise the target, or give "
            "an accuracy predictor, which knows the others too"
        )
    kept = latency_ms <= max(targets)
    genomes, latency_ms = genomes[kept], latency_ms[kept]
    return _Evaluated(genomes, problem.top1_of_all(genomes), latency_ms)


def _result(problem: Problem, strategy: Strategy, targets: tuple[float, ...], found: _Evaluated) -> SearchResult:
    order = np.lexsort((found.latency_ms, -found.top1))
    genomes, top1, latency_ms = found.genomes[order], found.top1[order], found.latency_ms[order]
    places = []
    for target in targets:
        within = latency_ms <= target
        if not within.any():
            raise problem.infeasible(target)
        places.append(int(within.argmax()))
    winners = [
        Winner(target, genomes[place].copy(), architecture, float(top1[place]), float(latency_ms[place]))
        for target, place, architecture in zip(targets, places, problem.space.decode(genomes[places]), strict=True)
    ]
    by_latency = np.lexsort((-top1, latency_ms))
    running = np.maximum.accumulate(top1[by_latency])
    improves = np.concatenate([[True], running[1:] > running[:-1]])
    front = by_latency[improves]
    return SearchResult(strategy, tuple(winners), genomes[front], top1[front], latency_ms[front], problem.evaluations)
