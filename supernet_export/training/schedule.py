"""Describe the training of a supernet as data: a schedule is a list of phases."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.supernet_export.spaces.mbconv_network import MBConvNetwork


@dataclass(frozen=True)
class Phase:
    """A stretch of training in which subnets are drawn from these choices.

    Every step trains the phase's largest subnet on the labels, and it then teaches `random_subnets` random ones and,
    where `smallest` is set, the phase's smallest (in-place distillation and the sandwich rule: Yu & Huang,
    *Universally Slimmable Networks and Improved Training Techniques*, ICCV 2019).
    """

    name: str
    epochs: int
    kernels: tuple[int, ...]
    expands: tuple[float, ...]
    depths: tuple[int, ...]
    learning_rate: float
    random_subnets: int
    smallest: bool = False
    #: Expand ratio tied to depth, the i-th expand with the i-th depth and one kernel for a whole stage
    #: (CompOFA, ICLR 2021).
    compound: bool = False
    #: At the start channels are sorted by importance, none across the width of an expand ratio given here: those that
    #: were trained before. Empty: not sorted.
    sort_within: tuple[float, ...] = ()
    #: In a compound phase: one random kernel for a whole stage, or one for each block.
    kernel_per_stage: bool = True
    #: One kernel for each stage, in place of random ones.
    stage_kernels: tuple[int, ...] | None = None

    def sample(self, network: MBConvNetwork, resolution: int, rng: np.random.Generator) -> Architecture:
        """Draw a random architecture of this phase."""
        stages = len(network.stage_blocks)
        depth_index = rng.integers(0, len(self.depths), stages)
        stage_of = np.array([block.stage for block in network.blocks()])
        if self.compound:
            depth_index = np.minimum(depth_index, self._deepest(network))
            expand_index = depth_index[stage_of]
        else:
            expand_index = rng.integers(0, len(self.expands), len(stage_of))
        if self.compound and self.kernel_per_stage:
            kernel_index = rng.integers(0, len(self.kernels), stages)[stage_of]
        else:
            kernel_index = rng.integers(0, len(self.kernels), len(stage_of))
        return Architecture(
            ks=self._fixed_kernels(network) or tuple(self.kernels[i] for i in kernel_index),
            e=tuple(self.expands[i] for i in expand_index),
            d=tuple(min(self.depths[i], most) for i, most in zip(depth_index, network.stage_blocks, strict=True)),
            r=resolution,
        )

    def extreme(self, network: MBConvNetwork, resolution: int, *, largest: bool) -> Architecture:
        """Return the largest or the smallest architecture of this phase."""
        pick = max if largest else min
        blocks = network.blocks()
        depth, expands = pick(self.depths), (pick(self.expands),) * len(blocks)
        if self.compound and largest and len(self.expands) == len(self.depths):
            expands = tuple(self.expands[self._deepest(network)[block.stage]] for block in blocks)
        return Architecture(
            ks=self._fixed_kernels(network) or (pick(self.kernels),) * len(blocks),
            e=expands,
            d=tuple(min(depth, most) for most in network.stage_blocks),
            r=resolution,
        )

    def _deepest(self, network: MBConvNetwork) -> list[int]:
        """Return for each stage the first depth that has all of its blocks, as an index; the last where none has."""
        last = len(self.depths) - 1
        return [
            next((i for i, depth in enumerate(self.depths) if depth >= most), last) for most in network.stage_blocks
        ]

    def _fixed_kernels(self, network: MBConvNetwork) -> tuple[int, ...]:
        """Return the kernel of each block where stages have one each."""
        chosen = self.stage_kernels
        return () if chosen is None else tuple(chosen[block.stage] for block in network.blocks())
