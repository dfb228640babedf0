"""The linearised search step: a multiple-choice knapsack, solved for a whole population at once.

Near a subnet the accuracy predictor is linear in the one-hot genome, and latency is a sum over blocks. What maximises
the one within the other is a multiple-choice knapsack: its Lagrangian falls apart into one choice per block, and a
bisection on the multiplier finds the price of a millisecond at which the target is just met.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fleetnas.supernet_export.spaces.base import Genomes, SlotTables
from fleetnas.supernet_export.spaces.mbconv import MBConvSpace

Floats32 = NDArray[np.float32]

#: Steps of the bisection on the logarithm of the multiplier, and its range: top-1 per the whole limit.
BISECTIONS = 10
LOWEST_PRICE, HIGHEST_PRICE = 1e-5, 1.0
#: Score of a banned variant: far below any accuracy, and small enough for sums in single precision.
_BAN = -1e3


@dataclass(frozen=True)
class Step:
    """What to propose from: n parents with their mates.

    A choice that is neither the parent's nor the mate's costs `move_cost`, one of the mate's `mate_cost`, both in
    units of accuracy: they keep the proposal where the linearisation holds.
    """

    parents: Genomes  #: (n, G)
    mates: Genomes  #: (n, G)
    gradient: Floats32  #: (n, F), of the accuracy with respect to the one-hot genome
    limits: Floats32  #: (n, C): most that each cost may be
    weights: Floats32  #: (n, C): share of each cost in the price; rows sum to 1
    move_cost: Floats32  #: (n,)
    mate_cost: Floats32  #: (n,)
    resolution: NDArray[np.intp]  #: (n,) index of the resolution to take


class Knapsack(Protocol):
    """Solves linearised steps in one design space under C additive costs."""

    def propose(self, step: Step) -> Genomes:
        """Canonical genomes, (n, G), that maximise the linearised accuracy within the limits as far as these allow."""


class MBConvKnapsack:
    """The knapsack of inverted-bottleneck spaces: a choice of (kernel, expand ratio) per block, of depth per stage."""

    def __init__(self, space: MBConvSpace, costs: Sequence[SlotTables], banned: Sequence[NDArray[np.bool_]]) -> None:
        """`costs`: C additive costs, each a constant and a table per slot. `banned`: per slot, variants to avoid."""
        self.space = space
        resolutions, variants = len(space.resolutions), len(space.kernels) * len(space.expands)
        self._blocks = np.stack([_block_costs(tables, resolutions, variants) for _, tables in costs])
        self._fixed = np.array(
            [constant + tables[0] + tables[1] + tables[-1] for constant, tables in costs], dtype=np.float32
        )
        closed = _block_costs([np.asarray(ban, np.float64) for ban in banned], resolutions, variants)
        self._banned = _BAN * closed if closed.any() else None
        allowed = [space.allowed_variants(choice).reshape(variants, -1) for choice in range(len(space.depths))]
        tied = any((mask != allowed[0]).any() for mask in allowed)
        #: Which variants a block may have: one mask per depth choice where they are tied to it, else one for all.
        self._allowed = [np.where(mask, 0.0, -np.inf).astype(np.float32) for mask in (allowed if tied else allowed[:1])]
        self._restricted = tied or not allowed[0].all()
        self._depth_sums, self._depth_closed = _depth_sums(space)
        self._stage_of = np.repeat(np.arange(space.stage_count), space.network.stage_blocks)

    def propose(self, step: Step) -> Genomes:
        """Canonical genomes, (n, G), that maximise the linearised accuracy within the limits as far as possible."""
        n, blocks = len(step.parents), self.space.block_count
        scores, depth_scores = self._scores(step)
        scale = step.weights / step.limits
        chosen = self._blocks[:, step.resolution]  # (C, n, V, B)
        costs = [np.ascontiguousarray(c.transpose(1, 0, 2)).reshape(-1, n * blocks) for c in chosen]
        fixed = self._fixed[:, step.resolution]
        price = costs[0] * np.repeat(scale[:, 0], blocks)
        for c in range(1, len(costs)):
            price += costs[c] * np.repeat(scale[:, c], blocks)
        low = np.full(n, np.log(LOWEST_PRICE), np.float32)
        high = np.full(n, np.log(HIGHEST_PRICE), np.float32)
        for _ in range(BISECTIONS):
            middle = 0.5 * (low + high)
            best, spent = self._values(scores, price, costs, np.exp(middle))
            _, totals = self._depths(best, spent, depth_scores)
            within = np.all(totals + fixed <= step.limits.T, axis=0)
            high, low = np.where(within, middle, high), np.where(within, low, middle)
        return self._solution(step, scores, price, depth_scores, np.exp(high))

    def _scores(self, step: Step) -> tuple[Floats32, Floats32]:
        """Linearised accuracy less the cost of moving: of variants (V, n*B), of depth choices (n, stages, depths)."""
        space = self.space
        n, b, k, e = len(step.parents), space.block_count, len(space.kernels), len(space.expands)
        kernel = step.gradient[:, : b * k].reshape(n, b, k).transpose(2, 0, 1)
        expand = step.gradient[:, b * k : b * (k + e)].reshape(n, b, e).transpose(2, 0, 1)
        scores = (kernel[:, None] + expand[None]).reshape(k * e, n, b)
        scores -= step.move_cost[:, None]
        if self._banned is not None:
            scores += self._banned[step.resolution].transpose(1, 0, 2)
        depth_scores = np.broadcast_to(-step.move_cost[:, None, None], (n, space.stage_count, len(space.depths))).copy()
        stages = np.arange(space.stage_count)
        for genomes, cost in ((step.mates, step.mate_cost), (step.parents, np.zeros_like(step.mate_cost))):
            _, d, ks, ex = space.expand_genes(genomes)
            row, block = np.nonzero(space.present(d))
            at_kernel, at_expand = ks[row, block], ex[row, block]
            value = kernel[at_kernel, row, block] + expand[at_expand, row, block]
            scores[at_kernel * e + at_expand, row, block] = value - cost[row]
            depth_scores[np.arange(n)[:, None], stages, d] = -cost[:, None]
        depth_scores[:, self._depth_closed] = -np.inf
        return scores.reshape(k * e, n * b), depth_scores

    def _values(
        self, scores: Floats32, price: Floats32, costs: Sequence[Floats32], multiplier: Floats32
    ) -> tuple[list[Floats32], list[list[Floats32]]]:
        """Per set of allowed variants: the best value of each block, (n*B,), and its costs, C of (n*B,)."""
        value = price * np.repeat(-multiplier, self.space.block_count)
        value += scores
        best, spent = [], []
        for mask in self._allowed:
            masked = self._masked(value, mask)
            highest = masked.max(axis=0)
            at_best = masked == highest
            best.append(highest)
            spent.append([np.where(at_best, cost, 0.0).max(axis=0) for cost in costs])
        return best, spent

    def _masked(self, value: Floats32, mask: Floats32) -> Floats32:
        if not self._restricted:
            return value
        count = value.shape[1] // self.space.block_count
        return np.asarray(value + np.tile(mask, (1, count)))

    def _depths(
        self, best: list[Floats32], spent: list[list[Floats32]], depth_scores: Floats32
    ) -> tuple[NDArray[np.intp], Floats32]:
        """Depth choices (n, stages) and total costs (C, n) of the blocks."""
        value = self._per_depth(best)
        value += depth_scores
        depth = value.argmax(axis=2)
        places = depth + np.arange(0, value.size, value.shape[2]).reshape(depth.shape)
        totals = np.empty((len(spent[0]), len(depth)), np.float32)
        for c in range(len(totals)):
            cost = self._per_depth([of_set[c] for of_set in spent])
            cost.take(places).sum(axis=1, out=totals[c])
        return depth, totals

    def _per_depth(self, per_set: list[Floats32]) -> Floats32:
        """Sums over a stage's first blocks, per depth choice: (n, stages, depths)."""
        shape = (-1, self.space.stage_count, len(self.space.depths))
        sums = [(values.reshape(-1, self.space.block_count) @ self._depth_sums).reshape(shape) for values in per_set]
        if len(sums) == 1:
            return sums[0]
        return np.stack([sums[j][:, :, j] for j in range(len(sums))], axis=2)

    def _solution(
        self, step: Step, scores: Floats32, price: Floats32, depth_scores: Floats32, multiplier: Floats32
    ) -> Genomes:
        blocks, expands = self.space.block_count, len(self.space.expands)
        value = price * np.repeat(-multiplier, blocks)
        value += scores
        every, best = np.arange(value.shape[1]), []
        choices = []
        for mask in self._allowed:
            masked = self._masked(value, mask)
            choices.append(masked.argmax(axis=0))
            best.append(masked[choices[-1], every])
        depth = (self._per_depth(best) + depth_scores).argmax(axis=2)
        per_block = [choice.reshape(-1, blocks) for choice in choices]
        if len(per_block) == 1:
            variant = per_block[0]
        else:
            variant = np.stack(per_block)[depth[:, self._stage_of], np.arange(len(depth))[:, None], np.arange(blocks)]
        return self.space.canonical(
            self.space.compress_genes(
                step.resolution.astype(np.int16),
                depth.astype(np.int16),
                (variant // expands).astype(np.int16),
                (variant % expands).astype(np.int16),
            )
        )


def _depth_sums(space: MBConvSpace) -> tuple[Floats32, NDArray[np.bool_]]:
    """A matrix (blocks, stages * depths) that sums a stage's first blocks, and the depth choices that do not exist."""
    depths = np.minimum(space.depths, np.array(space.network.stage_blocks)[:, None])
    stage = np.array([block.stage for block in space.block_list])
    position = np.array([block.position for block in space.block_list])
    member = (stage[:, None, None] == np.arange(space.stage_count)[:, None]) & (position[:, None, None] < depths)
    closed = np.zeros(depths.shape, dtype=np.bool_)
    closed[:, 1:] = depths[:, 1:] == depths[:, :-1]
    return member.reshape(len(stage), -1).astype(np.float32), closed


def _block_costs(tables: Sequence[NDArray[np.float64]], resolutions: int, variants: int) -> Floats32:
    """The elastic blocks' costs, (resolutions, variants, blocks), from tables whose first entry is absence."""
    columns = [table[1:].reshape(resolutions, variants) for table in tables[2:-1]]
    return np.stack(columns, axis=2).astype(np.float32)
