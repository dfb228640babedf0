"""Compute the physical costs of residual networks of bottlenecks: one table per slot, one row per variant."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fleetnas.supernet_export.spaces.base import COST_NAMES, Floats
from fleetnas.supernet_export.spaces.mbconv_network import Size, reduced_size
from fleetnas.supernet_export.spaces.resnet_network import ResNetBlock, ResNetNetwork, ResNetWidths


def slot_costs(
    network: ResNetNetwork,
    blocks: Sequence[ResNetBlock],
    widths: ResNetWidths,
    expands: Sequence[float],
    stem_middles: Sequence[bool],
    sizes: Sequence[Size],
) -> tuple[Floats, ...]:
    """Return the costs of every slot's variants: arrays of shape (variants, len(COST_NAMES)).

    `sizes` are those of the input images, one for each resolution; `stem_middles` tells for each stem depth whether the
    stem has its middle convolution. The slots are stem, each block, head; a block's variant 0 is its absence.
    """
    stem = [
        _stem_cost(network, size, middle, inner, out)
        for size in sizes
        for middle in stem_middles
        for inner in widths.stem_middle
        for out in widths.stem
    ]
    tables = [np.array(stem)]
    for block in blocks:
        out = widths.stages[block.stage]
        # The input of a later block has the stage's own width.
        variants = [
            _bottleneck_cost(
                before or out[j], widths.middle(block.stage, j, e), out[j], block, reduced_size(size, block.reduction)
            )
            for size in sizes
            for before in (widths.entering(block.stage) if block.first else (0,))
            for j in range(len(out))
            for e in expands
        ]
        tables.append(np.concatenate([np.zeros((1, len(COST_NAMES))), np.array(variants)]))
    reduction = blocks[-1].reduction * blocks[-1].stride
    last = [reduced_size(size, reduction) for size in sizes]
    head = [_head_cost(size, width, network.classes) for size in last for width in widths.stages[-1]]
    return (*tables, np.array(head))


def _stem_cost(net: ResNetNetwork, size: Size, middle: bool, inner: int, out: int) -> list[float]:
    """Cost of three 3x3 convolutions, the middle one optional with a shortcut, and a pooling by two if there is one."""
    pixels = math.prod(reduced_size(size, net.stem_stride))
    weights = net.image_channels * inner * 9 + inner + inner * out * 9 + out
    macs = (net.image_channels * inner + inner * out) * 9 * pixels
    steps = [net.image_channels * math.prod(size) + inner * pixels, (inner + out) * pixels]
    if net.stem_pool:
        steps.append(out * (pixels + math.prod(reduced_size(size, net.stem_reduction))))
    peak = max(steps)
    if middle:
        weights += inner * inner * 9 + inner
        macs += inner * inner * 9 * pixels
        steps += [2 * inner * pixels, 3 * inner * pixels]
        peak = max(peak, 3 * inner * pixels)
    return [1, 0, 0, 0, macs, 4.0 * sum(steps), weights, 4.0 * peak, 0, 0, 0]


def _head_cost(size: Size, width: int, classes: int) -> list[float]:
    live = 4.0 * width * (math.prod(size) + 1)
    return [1, 0, 0, 0, width * classes, live, width * classes + classes, live, 0, 0, 0]


def _bottleneck_cost(in_width: int, middle: int, out_width: int, block: ResNetBlock, size: Size) -> list[float]:
    """Return one row of a slot's cost table (`COST_NAMES`); the 3x3 convolution counts as `macs_other`."""
    before, after = math.prod(size), math.prod(reduced_size(size, block.stride))
    steps = [
        in_width * before + middle * before,
        middle * before + middle * after,
        middle * after + out_width * after,
        3 * out_width * after,
    ]
    kept = in_width * before
    weights = in_width * middle + middle + 9 * middle**2 + middle + middle * out_width + out_width
    project = middle * out_width * after
    if block.first:
        steps.append((in_width + out_width) * after)
        if block.stride > 1:
            steps.append(in_width * (before + after))
        weights += in_width * out_width + out_width
        project += in_width * out_width * after
    # The block's input stays alive for the shortcut while the others run; in the first step it is the operand.
    peak = max(steps[0], *(step + kept for step in steps[1:3]), steps[3])
    spatial = 9 * middle**2 * after
    strided = spatial if block.stride > 1 else 0
    expand = in_width * middle * before
    return [1, expand, 0, project, spatial, 4.0 * sum(steps), weights, 4.0 * peak, 0, 0, strided]
