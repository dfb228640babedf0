"""Describe the fixed part of residual networks of bottlenecks (OFA-ResNet50 and similar ones) and their blocks.

Source of the layout: the `ofa` package's `OFAResNets` (ResNet-D: a stem of 3x3 convolutions, shortcuts pooled first).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fleetnas.supernet_export.spaces.mbconv_network import make_divisible


@dataclass(frozen=True)
class ResNetNetwork:
    """The fixed part of a network: everything that is not elastic. Widths are at width multiplier 1."""

    stem_width: int
    stem_stride: int
    #: Whether a max pooling by two follows the stem.
    stem_pool: bool
    #: Per stage: output width, least blocks, stride of the first block.
    stage_widths: tuple[int, ...]
    least_blocks: tuple[int, ...]
    stage_strides: tuple[int, ...]
    classes: int
    image_channels: int = 3
    batch_norm_epsilon: float = 1e-5

    @property
    def stem_reduction(self) -> int:
        """Product of the stem's strides."""
        return self.stem_stride * (2 if self.stem_pool else 1)

    def blocks(self, most_extra: int) -> tuple[ResNetBlock, ...]:
        """Return the blocks in order, each stage with its least and `most_extra` more."""
        found: list[ResNetBlock] = []
        reduction = self.stem_reduction
        for stage, least in enumerate(self.least_blocks):
            for position in range(least + most_extra):
                stride = self.stage_strides[stage] if position == 0 else 1
                found.append(ResNetBlock(len(found), stage, position, stride, reduction))
                reduction *= stride
        return tuple(found)


@dataclass(frozen=True)
class ResNetBlock:
    """One bottleneck: 1x1, 3x3 with the stride, 1x1, and a shortcut that is average-pooled and projected if first."""

    index: int
    stage: int
    position: int
    stride: int
    reduction: int  #: product of the strides before it, the stem's and its pooling's included

    @property
    def first(self) -> bool:
        """Whether its input has the previous stage's width."""
        return self.position == 0


@dataclass(frozen=True)
class ResNetWidths:
    """Channels per width index: inside the stem, after it, and after each stage."""

    stem_middle: tuple[int, ...]
    stem: tuple[int, ...]
    stages: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, network: ResNetNetwork, multipliers: Sequence[float]) -> ResNetWidths:
        """Return the widths of a network at each multiplier."""
        stem = tuple(make_divisible(network.stem_width * w) for w in multipliers)
        return cls(
            stem_middle=tuple(make_divisible(width // 2) for width in stem),
            stem=stem,
            stages=tuple(tuple(make_divisible(width * w) for w in multipliers) for width in network.stage_widths),
        )

    def middle(self, stage: int, width: int, expand: float) -> int:
        """Return the channels inside a bottleneck of `stage` at a width index and an expand ratio."""
        return make_divisible(round(self.stages[stage][width] * expand))

    def entering(self, stage: int) -> tuple[int, ...]:
        """Return the widths, by index, of the first block's input in `stage`."""
        return self.stem if stage == 0 else self.stages[stage - 1]
