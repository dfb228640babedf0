"""The target solver over a bundle's design space: one of the search strategies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import numpy as np

from fleetnas.coordinator.records.bounds import Bounds
from fleetnas.coordinator.search.engine import DEFAULT_ROUNDS, Strategy, search
from fleetnas.coordinator.search.latency import LatencyModel
from fleetnas.coordinator.search.problem import AccuracyModel
from fleetnas.coordinator.tuning.proposal import Genome
from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.supernet_export.spaces.base import DesignSpace, Genomes

#: Spaces up to this size are evaluated whole, whatever the strategy.
_SMALL_SPACE = 5000


class BundleTargetSolver:
    """A `TargetSolver` with one of the search strategies."""

    def __init__(
        self,
        space: DesignSpace,
        accuracy: AccuracyModel,
        strategy: str,
        *,
        bounds: Bounds | None = None,
        rounds: int = DEFAULT_ROUNDS,
    ) -> None:
        """`rounds` is the number of generations of an evolutionary search."""
        self._space, self._accuracy, self._bounds, self._rounds = space, accuracy, bounds, rounds
        self._strategy = "exhaustive" if space.size <= _SMALL_SPACE else checked_strategy(strategy)

    def __call__(
        self, latency: LatencyModel, targets_ms: Sequence[float], start: Genomes, rng: np.random.Generator
    ) -> list[Genome | None]:
        """Return one genome (G,) per ascending target, in the unit of `latency`; None where no subnet meets it.

        `start` are subnets (n, G) to begin from.
        """
        result = search(
            self._space,
            self._accuracy,
            latency,
            targets_ms,
            rng=rng,
            strategy=self._strategy,
            bounds=self._bounds,
            rounds=self._rounds,
            leave_out_infeasible=True,
            warm_start=start if len(start) else None,
        )
        found = {winner.target_ms: winner.genome for winner in result.winners}
        return [found.get(float(target)) for target in targets_ms]


def checked_strategy(name: str) -> Strategy:
    """Return the strategy called `name`; `UsageError` lists the known ones where there is none."""
    for known in get_args(Strategy):
        if name == known:
            return known  # type: ignore[no-any-return]
    raise UsageError(f"no search strategy is called {name!r}; there are {', '.join(get_args(Strategy))}")
