"""Solvers of targets: a search over a bundle's design space, or the best subnet of a list."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fleetnas.coordinator.records.bounds import Bounds
from fleetnas.coordinator.records.strategy import Strategy
from fleetnas.coordinator.search.blas import single_threaded_blas
from fleetnas.coordinator.search.candidate_table import CandidateTable
from fleetnas.coordinator.search.engine import search
from fleetnas.coordinator.search.guided import GuidedSettings
from fleetnas.coordinator.search.latency import LatencyModel, TableLatency
from fleetnas.coordinator.search.problem import AccuracyModel, Problem
from fleetnas.coordinator.tuning.proposal import Genome
from fleetnas.supernet_export.spaces.base import DesignSpace, Genomes

#: Generations of a search: fewer than of one that is made once, since the next round makes this one again. Winners of
#: simulated campaigns were as accurate with 10 as with 40.
_ROUNDS = 12
#: Spaces up to this size are evaluated whole, whatever the strategy.
_SMALL_SPACE = 5000


class BundleTargetSolver:
    """A `TargetSolver` with one of the search strategies."""

    def __init__(
        self,
        space: DesignSpace,
        accuracy: AccuracyModel,
        strategy: Strategy,
        *,
        bounds: Bounds | None = None,
        rounds: int = _ROUNDS,
    ) -> None:
        """`rounds` is the number of generations of the search."""
        self._space, self._accuracy, self._bounds = space, accuracy, bounds
        self._engine = GuidedSettings(rounds=rounds)
        self._strategy = Strategy.EXHAUSTIVE if space.size <= _SMALL_SPACE else strategy

    def __call__(
        self, latency: LatencyModel, targets_ms: Sequence[float], start: Genomes, rng: np.random.Generator
    ) -> list[Genome | None]:
        """Return one genome (G,) per ascending target, in the unit of `latency`; None where no subnet meets it.

        `start` are subnets (n, G) to begin from.
        """
        with single_threaded_blas():
            problem = Problem(self._space, self._accuracy, latency, self._bounds)
            result = search(
                problem,
                targets_ms,
                rng=rng,
                strategy=self._strategy,
                engine=self._engine,
                leave_out_infeasible=True,
                warm_start=start if len(start) else None,
            )
        found = {winner.target_ms: winner.genome for winner in result.winners}
        return [found.get(float(target)) for target in targets_ms]


class ListTargetSolver:
    """A `TargetSolver` over a list of subnets: nothing else is found. Exact, and a function of its arguments alone."""

    def __init__(self, space: DesignSpace, accuracy: AccuracyModel, genomes: Genomes) -> None:
        """`genomes` must be canonical, (n, G), n at least 1."""
        top1 = np.asarray(accuracy.predict(genomes), dtype=np.float64)
        self._table = CandidateTable(space, genomes[np.argsort(-top1, kind="stable")])

    def __call__(
        self, latency: TableLatency, targets_ms: Sequence[float], start: Genomes, rng: np.random.Generator
    ) -> list[Genome | None]:
        """Return one genome (G,) per target, in the unit of `latency`; None where no subnet of the list meets it."""
        del start, rng
        predicted = latency.predict_rows(self._table, np.arange(len(self._table)))
        within = [np.flatnonzero(predicted <= target_ms) for target_ms in targets_ms]
        return [self._table.genomes[rows[0]] if len(rows) else None for rows in within]
