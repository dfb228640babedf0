"""Find what the shapes of a checkpoint's tensors tell about its supernet."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from fleetnas.fleet_protocol.errors import CheckpointError
from fleetnas.supernet_export.slicing.mbconv import canonical_name
from fleetnas.supernet_export.spaces.mbconv_network import make_divisible

Shapes = Mapping[str, tuple[int, ...]]

_MATRIX = re.compile(r"^blocks\.\d+\..*\.(\d{1,2})to(\d{1,2})_matrix$")
_BLOCK = "blocks.{}.mobile_inverted_conv"
#: Expand ratios that are tried, whole ones first.
_EXPANDS = tuple(float(e) for e in range(1, 17)) + tuple(e / 4 for e in range(1, 65) if e % 4)
_RATIOS = tuple(e / 100 for e in range(5, 401))


@dataclass(frozen=True)
class MBConvBlockFacts:
    """Channels of one elastic inverted bottleneck at its largest, its kernel size and whether it has a gate."""

    in_width: int
    middle: int
    out_width: int
    kernel: int
    squeeze: bool


@dataclass(frozen=True)
class MBConvFacts:
    """An inverted-bottleneck supernet, as far as shapes tell."""

    classes: int
    image_channels: int
    stem_width: int
    first_block_width: int
    blocks: tuple[MBConvBlockFacts, ...]
    final_expand_width: int | None
    feature_width: int
    #: Kernel sizes that transform matrices lead from and to, ascending; empty without matrices.
    transformed_kernels: tuple[int, ...]

    @property
    def family(self) -> str:
        """What people call such networks."""
        return "MobileNetV3" if self.final_expand_width is not None else "ProxylessNAS"

    @property
    def largest_kernel(self) -> int | None:
        """Kernel size of every block; None where blocks differ, as in a single network."""
        kernels = {block.kernel for block in self.blocks}
        return kernels.pop() if len(kernels) == 1 else None

    @property
    def largest_expand(self) -> float | None:
        """The expand ratio that gives every block its width; None where none does."""
        return next(
            (
                ratio
                for ratio in _EXPANDS
                if all(make_divisible(round(block.in_width * ratio)) == block.middle for block in self.blocks)
            ),
            None,
        )

    @property
    def stages(self) -> tuple[tuple[MBConvBlockFacts, ...], ...]:
        """Blocks of each stage, where a stage begins with a block that changes the number of channels."""
        found: list[list[MBConvBlockFacts]] = []
        for block in self.blocks:
            if not found or block.in_width != block.out_width:
                found.append([])
            found[-1].append(block)
        return tuple(tuple(stage) for stage in found)


@dataclass(frozen=True)
class ResNetFacts:
    """A residual supernet of bottlenecks, as far as shapes tell; per stage: output width, blocks, widths inside."""

    classes: int
    image_channels: int
    stem_middle: int
    stem_width: int
    stage_widths: tuple[int, ...]
    stage_blocks: tuple[int, ...]
    stage_middles: tuple[frozenset[int], ...]

    family = "ResNet"

    @property
    def largest_expand(self) -> float | None:
        """The expand ratio that gives every bottleneck its width; None where none does."""
        return next(
            (
                ratio
                for ratio in sorted(_RATIOS, key=lambda ratio: (round(100 * ratio) % 5 > 0, ratio))
                if all(
                    middles == {make_divisible(round(width * ratio))}
                    for width, middles in zip(self.stage_widths, self.stage_middles, strict=True)
                )
            ),
            None,
        )


Facts = MBConvFacts | ResNetFacts


def read_facts(shapes: Shapes) -> Facts:
    """Return the facts; `CheckpointError` where the tensors are of no family that is known here."""
    named = {canonical_name(name): shape for name, shape in shapes.items()}
    try:
        if "input_stem.0.conv.weight" in named:
            return _resnet(named)
        return _mbconv(named)
    except (KeyError, IndexError, ValueError) as error:
        missing = str(error.args[0])[:80] if error.args else ""
        raise CheckpointError(
            f"holds the weights of no supernet that is known here: {missing!r} is not there, or has an odd shape; save "
            "a once-for-all network's state dict, or give --space with the name of a space that you registered"
        ) from None


def _mbconv(named: Shapes) -> MBConvFacts:
    blocks = []
    while f"{_BLOCK.format(len(blocks) + 1)}.depth_conv.conv.weight" in named:
        prefix = _BLOCK.format(len(blocks) + 1)
        middle, in_width = named[f"{prefix}.inverted_bottleneck.conv.weight"][:2]
        kernel = named[f"{prefix}.depth_conv.conv.weight"][2]
        out_width = named[f"{prefix}.point_linear.conv.weight"][0]
        squeeze = f"{prefix}.depth_conv.se.fc.reduce.weight" in named
        blocks.append(MBConvBlockFacts(in_width, middle, out_width, kernel, squeeze))
    if not blocks:
        raise KeyError(f"{_BLOCK.format(1)}.depth_conv.conv.weight")
    matrices = [match for name in named if (match := _MATRIX.match(name))]
    kernels = {int(size) for match in matrices for size in match.groups()}
    wide = named.get("final_expand_layer.conv.weight")
    return MBConvFacts(
        classes=named["classifier.linear.weight"][0],
        image_channels=named["first_conv.conv.weight"][1],
        stem_width=named["first_conv.conv.weight"][0],
        first_block_width=named[f"{_BLOCK.format(0)}.point_linear.conv.weight"][0],
        blocks=tuple(blocks),
        final_expand_width=None if wide is None else wide[0],
        feature_width=named["feature_mix_layer.conv.weight"][0],
        transformed_kernels=tuple(sorted(kernels)),
    )


def _resnet(named: Shapes) -> ResNetFacts:
    widths: list[int] = []
    blocks: list[int] = []
    middles: list[set[int]] = []
    index = 0
    while f"blocks.{index}.conv1.conv.weight" in named:
        if f"blocks.{index}.downsample.conv.weight" in named:
            widths.append(named[f"blocks.{index}.conv3.conv.weight"][0])
            blocks.append(0)
            middles.append(set())
        blocks[-1] += 1
        middles[-1].add(named[f"blocks.{index}.conv1.conv.weight"][0])
        index += 1
    if not widths:
        raise KeyError("blocks.0.conv1.conv.weight")
    return ResNetFacts(
        classes=named["classifier.linear.weight"][0],
        image_channels=named["input_stem.0.conv.weight"][1],
        stem_middle=named["input_stem.0.conv.weight"][0],
        stem_width=named["input_stem.2.conv.weight"][0],
        stage_widths=tuple(widths),
        stage_blocks=tuple(blocks),
        stage_middles=tuple(frozenset(inner) for inner in middles),
    )
