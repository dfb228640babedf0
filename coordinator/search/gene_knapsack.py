"""The linearised search step for any design space: one choice per gene, as if genes cost latency independently."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fleetnas.coordinator.search.knapsack import BISECTIONS, HIGHEST_PRICE, LOWEST_PRICE, Floats32, Step
from fleetnas.coordinator.search.latency import SlotTableLatency
from fleetnas.supernet_export.spaces.base import DesignSpace, Genomes, SlotTables

Floats = NDArray[np.float64]

#: Passes that correct for dependent costs of genes.
_PASSES = 2


class GeneKnapsack:
    """Solves the knapsack over single-gene changes of the parents; the first gene must be the resolution's.

    It is slower than a knapsack over the space's blocks, and the sum of single changes only approximates their joint
    cost: the error is subtracted from the limit, and the knapsack solved again.
    """

    def __init__(self, space: DesignSpace, costs: Sequence[SlotTables], banned: Sequence[NDArray[np.bool_]]) -> None:
        """`costs`: C additive costs, each a constant and a table per slot. `banned`: per slot, variants to avoid."""
        self.space = space
        self._costs = [SlotTableLatency(space, *tables) for tables in costs]
        self._banned = SlotTableLatency(space, 0.0, [ban.astype(np.float64) for ban in banned])
        counts = space.cardinalities[1:].astype(np.intp)
        self._gene = 1 + np.repeat(np.arange(len(counts)), counts)
        self._value = np.concatenate([np.arange(count) for count in counts])
        self._place = (self._gene - 1) * int(counts.max()) + self._value
        self._grid = (len(counts), int(counts.max()))

    def propose(self, step: Step) -> Genomes:
        """Canonical genomes, (n, G), that maximise the linearised accuracy within the limits as far as possible."""
        parents = step.parents.copy()
        parents[:, 0] = step.resolution
        parents = self.space.canonical(parents)
        gain, extra = self._single_changes(parents, step)
        base = self._totals(parents)
        room = step.limits - base
        genomes = parents
        for last in range(_PASSES):
            choice, predicted = self._solve(gain, extra, room, step)
            genomes = self.space.canonical(np.concatenate([parents[:, :1], choice], axis=1).astype(np.int16))
            missed = self._totals(genomes) - base - predicted
            if last + 1 < _PASSES:
                room = room - missed
        return genomes

    def _totals(self, genomes: Genomes) -> Floats:
        """Costs of whole networks, (n, C)."""
        return np.column_stack([cost.predict(genomes) for cost in self._costs])

    def _single_changes(self, parents: Genomes, step: Step) -> tuple[Floats32, Floats]:
        """Gain minus moving cost of every value of every gene (n, genes, values), and its change of the C costs."""
        n, moves = len(parents), len(self._gene)
        changed = np.repeat(parents, moves, axis=0)
        gene, value = np.tile(self._gene, n), np.tile(self._value, n)
        changed[np.arange(n * moves), gene] = value
        changed = self.space.canonical(changed)
        difference = self.space.one_hot(changed).reshape(n, moves, -1) - self.space.one_hot(parents)[:, None]
        gain = np.matmul(difference, step.gradient[:, :, None])[:, :, 0]
        at = self._value == parents[:, self._gene]
        at_mate = self._value == step.mates[:, self._gene]
        gain -= np.where(at, 0.0, np.where(at_mate, step.mate_cost[:, None], step.move_cost[:, None]))
        gain -= 1e3 * (self._banned.predict(changed).reshape(n, moves) > 0)
        grid = np.full((n, self._grid[0] * self._grid[1]), -np.inf, np.float32)
        grid[:, self._place] = gain
        extra = np.zeros((len(self._costs), n, grid.shape[1]))
        for c, cost in enumerate(self._costs):
            extra[c][:, self._place] = cost.predict(changed).reshape(n, moves) - cost.predict(parents)[:, None]
        return grid.reshape(n, *self._grid), extra.reshape(-1, n, *self._grid)

    def _solve(self, gain: Floats32, extra: Floats, room: Floats, step: Step) -> tuple[NDArray[np.intp], Floats]:
        """Values per gene, (n, genes), and the costs that they are predicted to add, (n, C)."""
        price = np.einsum("cngv,nc->ngv", extra, step.weights / step.limits)
        n = len(gain)
        low, high = np.full(n, np.log(LOWEST_PRICE)), np.full(n, np.log(HIGHEST_PRICE))

        def choose(multiplier: Floats) -> tuple[NDArray[np.intp], Floats]:
            choice = (gain - multiplier[:, None, None] * price).argmax(axis=2)
            added = np.take_along_axis(extra, choice[None, :, :, None], axis=3)[..., 0].sum(axis=2)
            return choice, added.T

        for _ in range(BISECTIONS):
            middle = 0.5 * (low + high)
            within = (choose(np.exp(middle))[1] <= room).all(axis=1)
            high, low = np.where(within, middle, high), np.where(within, low, middle)
        return choose(np.exp(high))
