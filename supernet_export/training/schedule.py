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

    def sample(self, network: MBConvNetwork, resolution: int, rng: np.random.Generator) -> Architecture:
        """Draw a random architecture of this phase."""
        stages = len(network.stage_blocks)
        depth_index = rng.integers(0, len(self.depths), stages)
        stage_of = np.array([block.stage for block in network.blocks()])
        if self.compound:
            expand_index = depth_index[stage_of]
            kernel_index = rng.integers(0, len(self.kernels), stages)[stage_of]
        else:
            expand_index = rng.integers(0, len(self.expands), len(stage_of))
            kernel_index = rng.integers(0, len(self.kernels), len(stage_of))
        return Architecture(
            ks=tuple(self.kernels[i] for i in kernel_index),
            e=tuple(self.expands[i] for i in expand_index),
            d=tuple(min(self.depths[i], most) for i, most in zip(depth_index, network.stage_blocks, strict=True)),
            r=resolution,
        )

    def extreme(self, network: MBConvNetwork, resolution: int, *, largest: bool) -> Architecture:
        """Return the largest or the smallest architecture of this phase."""
        pick = max if largest else min
        blocks = len(network.blocks())
        depth = pick(self.depths)
        return Architecture(
            ks=(pick(self.kernels),) * blocks,
            e=(pick(self.expands),) * blocks,
            d=tuple(min(depth, most) for most in network.stage_blocks),
            r=resolution,
        )
