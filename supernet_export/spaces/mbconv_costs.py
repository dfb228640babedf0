"""Compute the physical costs of inverted-bottleneck networks: one table per slot, one row per variant."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fleetnas.supernet_export.spaces.base import COST_NAMES, Floats
from fleetnas.supernet_export.spaces.mbconv_network import MBConvNetwork, Size, reduced_size, squeeze_width


@dataclass(frozen=True, slots=True)
class Bottleneck:
    """One inverted bottleneck with all its choices made; `middle` are the channels of its depthwise convolution."""

    in_width: int
    middle: int
    out_width: int
    kernel: int
    stride: int
    squeeze: bool
    residual: bool
    #: Whether a 1x1 convolution widens the input first.
    expand: bool = True


def slot_costs(
    network: MBConvNetwork, kernels: Sequence[int], expands: Sequence[float], sizes: Sequence[Size]
) -> tuple[Floats, ...]:
    """Return the costs of every slot's variants: arrays of shape (variants, len(COST_NAMES)).

    `sizes` are those of the input images, one for each resolution. The slots are stem, first block, each elastic block,
    head. A block's variants are its absence, then every resolution, kernel and expand ratio, the last one varying
    fastest.
    """
    tables = [
        np.array([_stem_cost(network, size) for size in sizes]),
        np.array([_first_block_cost(network, size) for size in sizes]),
    ]
    for block in network.blocks():
        absent = np.zeros((1, len(COST_NAMES)))
        variants = [
            block_cost(
                Bottleneck(
                    block.in_width,
                    block.middle_width(e),
                    block.out_width,
                    k,
                    block.stride,
                    squeeze=block.squeeze,
                    residual=block.residual,
                ),
                reduced_size(size, block.reduction),
            )
            for size in sizes
            for k in kernels
            for e in expands
        ]
        tables.append(np.concatenate([absent, np.array(variants)]))
    return (*tables, np.array([_head_cost(network, size) for size in sizes]))


def block_cost(block: Bottleneck, size: Size) -> list[float]:
    """Return one row of a slot's cost table (`COST_NAMES`) for a block on an input of `size`."""
    before, after = math.prod(size), math.prod(reduced_size(size, block.stride))
    inner = squeeze_width(block.middle) if block.squeeze else 0
    kept = block.in_width * before if block.residual else 0
    steps = [(block.middle * before, block.middle * after), (block.middle * after, block.out_width * after)]
    depthwise = block.middle * block.kernel**2 * after
    weights = block.middle * block.kernel**2 + block.middle + block.middle * block.out_width + block.out_width
    if block.expand:
        steps.insert(0, (block.in_width * before, block.middle * before))
        weights += block.in_width * block.middle + block.middle
    if block.squeeze:
        steps.append((2 * block.middle * after, block.middle * after))
        weights += 2 * block.middle * inner + block.middle + inner
    if block.residual:
        steps.append((2 * block.out_width * after, block.out_width * after))
    moved = sum(read + written for read, written in steps)
    # The block's input is the first step's own operand; while it runs it is not counted twice.
    peak = max(read + written + (kept if i else 0) for i, (read, written) in enumerate(steps))
    return [
        1,
        block.in_width * block.middle * before if block.expand else 0,
        depthwise,
        block.middle * block.out_width * after,
        2 * block.middle * inner,
        4.0 * moved,
        weights,
        4.0 * peak,
        depthwise if block.kernel > 5 else 0,
        depthwise if block.kernel == 5 else 0,
        depthwise if block.stride > 1 else 0,
    ]


def _stem_cost(net: MBConvNetwork, size: Size) -> list[float]:
    out = math.prod(reduced_size(size, net.stem_stride))
    weights = net.image_channels * net.stem_width * 9
    live = 4.0 * (net.image_channels * math.prod(size) + net.stem_width * out)
    return [1, 0, 0, 0, weights * out, live, weights + net.stem_width, live, 0, 0, 0]


def _first_block_cost(net: MBConvNetwork, size: Size) -> list[float]:
    residual = net.first_block_residual and net.stem_width == net.first_block_width
    block = Bottleneck(
        net.stem_width, net.stem_width, net.first_block_width, 3, 1, squeeze=False, residual=residual, expand=False
    )
    return block_cost(block, reduced_size(size, net.stem_stride))


def _head_cost(net: MBConvNetwork, size: Size) -> list[float]:
    last = net.stage_widths[-1]
    for stride in (net.stem_stride, *net.stage_strides):
        size = reduced_size(size, stride)
    pixels = math.prod(size)
    classifier = net.feature_width * net.classes
    if net.final_expand_width is None:
        macs = last * net.feature_width * pixels + classifier
        weights = last * net.feature_width + net.feature_width + classifier + net.classes
        live = 4.0 * (last + net.feature_width) * pixels
    else:
        wide = net.final_expand_width
        macs = last * wide * pixels + wide * net.feature_width + classifier
        weights = last * wide + wide + wide * net.feature_width + classifier + net.classes
        live = 4.0 * (last + wide) * pixels
    return [1, 0, 0, 0, macs, live, weights, live, 0, 0, 0]
