"""Describe the fixed part of inverted-bottleneck networks (OFA's MobileNetV3 and ProxylessNAS) and their blocks.

Source of the layouts: Cai et al., *Once-for-All* (ICLR 2020), and the state dicts that its authors publish.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from fleetnas.supernet_export.graph import Activation

#: (height, width) of an image or a feature map.
Size: TypeAlias = tuple[int, int]


def make_divisible(value: float, divisor: int = 8) -> int:
    """Round channels to a multiple of `divisor`, never more than 10 % down (MobileNet's rule)."""
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


@dataclass(frozen=True)
class MBConvNetwork:
    """The fixed part of a network: everything that is not elastic."""

    stem_width: int
    stem_stride: int
    stem_activation: Activation
    first_block_width: int
    first_block_activation: Activation
    #: Per stage: output width, most blocks, stride of the first block, activation, squeeze-and-excite.
    stage_widths: tuple[int, ...]
    stage_blocks: tuple[int, ...]
    stage_strides: tuple[int, ...]
    stage_activations: tuple[Activation, ...]
    stage_squeeze: tuple[bool, ...]
    #: MobileNetV3 widens by `final_expand_width` before pooling and mixes after it (no batch norm);
    #: ProxylessNAS (None) mixes before pooling, with batch norm.
    final_expand_width: int | None
    feature_width: int
    head_activation: Activation
    classes: int
    image_channels: int = 3
    #: MobileNetV3 adds the first block's input back; ProxylessNAS does not.
    first_block_residual: bool = True
    batch_norm_epsilon: float = 1e-5

    def blocks(self) -> tuple[MBConvBlock, ...]:
        """Return the elastic blocks in order, without the fixed first block."""
        found: list[MBConvBlock] = []
        width, reduction = self.first_block_width, self.stem_stride
        for stage, blocks in enumerate(self.stage_blocks):
            for position in range(blocks):
                stride = self.stage_strides[stage] if position == 0 else 1
                found.append(
                    MBConvBlock(
                        index=len(found) + 1,
                        stage=stage,
                        position=position,
                        in_width=width,
                        out_width=self.stage_widths[stage],
                        stride=stride,
                        reduction=reduction,
                        activation=self.stage_activations[stage],
                        squeeze=self.stage_squeeze[stage],
                    )
                )
                width, reduction = self.stage_widths[stage], reduction * stride
        return tuple(found)


@dataclass(frozen=True)
class MBConvBlock:
    """One elastic inverted bottleneck."""

    index: int  #: its number in the state dict, the fixed first block being 0
    stage: int
    position: int
    in_width: int
    out_width: int
    stride: int
    reduction: int  #: product of the strides before it
    activation: Activation
    squeeze: bool

    @property
    def residual(self) -> bool:
        """Whether the block's input is added to its output."""
        return self.stride == 1 and self.in_width == self.out_width

    def middle_width(self, expand: float) -> int:
        """Return the channels of the depthwise convolution at an expand ratio."""
        return make_divisible(round(self.in_width * expand))


def squeeze_width(channels: int) -> int:
    """Return the channels inside squeeze-and-excite."""
    return make_divisible(channels // 4)


def reduced(size: int, by: int) -> int:
    """Return the side of a feature map after strides whose product is `by` (integers), each rounding up."""
    return -(-size // by)


def reduced_size(size: Size, by: int) -> Size:
    """Return the height and width of a feature map after strides whose product is `by`, each rounding up."""
    return reduced(size[0], by), reduced(size[1], by)
