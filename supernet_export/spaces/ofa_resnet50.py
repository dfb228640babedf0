"""Define `ofa-resnet50`: the design space of OFA-ResNet50, with elastic depth, expand ratio, width and stem.

Source of the layout: the `ofa` package's `OFAResNets` and `ResNetArchEncoder`, whose `d`, `e`, `w` are used here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.fleet_protocol.errors import ArchitectureError, UsageError
from fleetnas.supernet_export.spaces.base import COST_NAMES, DesignSpace, Genomes, gene_index
from fleetnas.supernet_export.spaces.mbconv_network import make_divisible, reduced

#: Input resolutions in pixels of OFA's published accuracy predictor, in the order of its input.
RESOLUTIONS = (128, 144, 160, 176, 192, 224, 240, 256)
EXPANDS = (0.2, 0.25, 0.35)
WIDTHS = (0.65, 0.8, 1.0)
#: Blocks beyond a stage's least; of the stem, 0 leaves its middle convolution out and 2 keeps it.
DEPTHS = (0, 1, 2)
STEM_DEPTHS = (0, 2)
LEAST_BLOCKS = (2, 2, 4, 2)
_STAGE_WIDTHS = (256, 512, 1024, 2048)
_STAGE_STRIDES = (1, 2, 2, 2)
_STEM_WIDTH = 64


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


class OfaResNet50Space(DesignSpace):
    """Genes: resolution, stem depth, depth per stage (4), width (stem's middle, stem, 4 stages), expand per block (18).

    Slots: stem, each block, head; a block's variant 0 is its absence. Entries of `w` are indices into `WIDTHS`.
    """

    name = "ofa-resnet50"
    batch_norm_epsilon = 1e-5

    def __init__(self, resolutions: Sequence[int] = RESOLUTIONS) -> None:
        wrong = [r for r in resolutions if type(r) is not int or r not in RESOLUTIONS]
        if wrong or not resolutions or len(set(resolutions)) < len(resolutions):
            raise UsageError(
                f"resolutions must be distinct and of {', '.join(map(str, RESOLUTIONS))} pixels, at least one; "
                f"found {str(list(resolutions))[:200]}: leave out what differs"
            )
        self.resolutions, self.classes, self.image_channels = tuple(sorted(resolutions)), 1000, 3
        #: Channels per width index: inside the stem, after it, and after each stage.
        self.stem_widths = tuple(make_divisible(_STEM_WIDTH * w) for w in WIDTHS)
        self.stem_middle_widths = tuple(make_divisible(width // 2) for width in self.stem_widths)
        self.stage_widths = tuple(tuple(make_divisible(width * w) for w in WIDTHS) for width in _STAGE_WIDTHS)
        self.block_list = _blocks()
        self._stage_of = np.array([block.stage for block in self.block_list])
        self._position_of = np.array([block.position for block in self.block_list])
        stages, blocks = len(LEAST_BLOCKS), len(self.block_list)
        self.cardinalities = np.array(
            [len(self.resolutions), len(STEM_DEPTHS)]
            + [len(DEPTHS)] * stages
            + [len(WIDTHS)] * (2 + stages)
            + [len(EXPANDS)] * blocks,
            dtype=np.int16,
        )
        self.slot_names = (
            "stem", *(f"stage{b.stage + 1}.block{b.position + 1}" for b in self.block_list), "head"
        )  # fmt: skip
        self.slot_costs = self._build_costs()

    @property
    def options(self) -> Mapping[str, Any]:
        """The constructor's options, for a bundle's manifest."""
        return {"resolutions": list(self.resolutions)}

    def middle_width(self, stage: int, width: int, expand: float) -> int:
        """Return the channels inside a bottleneck of `stage` at a width index and an expand ratio."""
        return make_divisible(round(self.stage_widths[stage][width] * expand))

    # -- genes -------------------------------------------------------------------------------------------------

    def _split(self, genomes: Genomes) -> tuple[Genomes, Genomes, Genomes, Genomes, Genomes]:
        """Return indices of resolution (n,), stem depth (n,), depth (n, 4), width (n, 6) and expand ratio (n, 18)."""
        return genomes[:, 0], genomes[:, 1], genomes[:, 2:6], genomes[:, 6:12], genomes[:, 12:]

    def _present(self, depth: NDArray[Any]) -> NDArray[np.bool_]:
        return np.asarray(self._position_of < (np.array(LEAST_BLOCKS) + depth)[:, self._stage_of])

    def active(self, genomes: Genomes) -> NDArray[np.bool_]:
        """Return which genes matter, shape (n, G): those of absent blocks do not."""
        always = np.ones((len(genomes), 12), dtype=np.bool_)
        return np.concatenate([always, self._present(genomes[:, 2:6])], axis=1)

    @property
    def size(self) -> int:
        """Number of distinct networks, resolutions included."""
        total = len(self.resolutions) * len(STEM_DEPTHS) * len(WIDTHS) ** (2 + len(LEAST_BLOCKS))
        for least in LEAST_BLOCKS:
            total *= sum(len(EXPANDS) ** (least + extra) for extra in DEPTHS)
        return int(total)

    # -- views -------------------------------------------------------------------------------------------------

    def slots(self, genomes: Genomes) -> NDArray[np.intp]:
        """Return the variant of each slot, shape (n, S)."""
        r, stem, d, w, e = (part.astype(np.intp) for part in self._split(genomes))
        widths, expands = len(WIDTHS), len(EXPANDS)
        first_slot = ((r * len(STEM_DEPTHS) + stem) * widths + w[:, 0]) * widths + w[:, 1]
        out = w[:, 2:][:, self._stage_of]
        before = w[:, 1:-1][:, self._stage_of]
        same = 1 + (r[:, None] * widths + out) * expands + e
        entering = 1 + ((r[:, None] * widths + before) * widths + out) * expands + e
        variant = np.where(self._position_of == 0, entering, same)
        blocks = np.where(self._present(d), variant, 0)
        return np.concatenate([first_slot[:, None], blocks, (r * widths + w[:, -1])[:, None]], axis=1)

    def one_hot(self, genomes: Genomes) -> NDArray[np.float32]:
        """Return resolution 8, stem 2, widths 6x3, expand ratios 18x3: the layout of OFA's published predictor."""
        r, stem, d, w, e = self._split(genomes)
        n = len(genomes)
        columns = np.array([RESOLUTIONS.index(side) for side in self.resolutions])
        expand = np.eye(len(EXPANDS), dtype=np.float32)[e] * self._present(d)[:, :, None]
        parts = [
            np.eye(len(RESOLUTIONS), dtype=np.float32)[columns[r]],
            np.eye(len(STEM_DEPTHS), dtype=np.float32)[stem],
            np.eye(len(WIDTHS), dtype=np.float32)[w].reshape(n, -1),
            expand.reshape(n, -1),
        ]
        return np.concatenate(parts, axis=1, dtype=np.float32)

    def decode(self, genomes: Genomes) -> list[Architecture]:
        """Return the canonical architectures of the genomes."""
        r, stem, d, w, e = self._split(genomes)
        expand = np.where(self._present(d), np.array(EXPANDS)[e], 0.0)
        depth = np.concatenate([np.array(STEM_DEPTHS)[stem][:, None], np.array(DEPTHS)[d]], axis=1)
        side = np.array(self.resolutions)[r]
        return [
            Architecture(e=tuple(ratios), d=tuple(depths), w=tuple(widths), r=pixels)
            for ratios, depths, widths, pixels in zip(
                expand.tolist(), depth.tolist(), w.tolist(), side.tolist(), strict=True
            )
        ]

    def encode(self, architectures: Sequence[Architecture]) -> Genomes:
        """Return canonical genomes, shape (n, G); `ArchitectureError` names an entry that is not in the space."""
        genomes = np.zeros((len(architectures), self.gene_count), np.int16)
        for row, architecture in enumerate(architectures):
            self._check_lengths(architecture)
            genomes[row, 0] = gene_index(architecture.r, self.resolutions, "r (resolution)")
            genomes[row, 1] = gene_index(architecture.d[0], STEM_DEPTHS, "d[0] (stem depth)")
            for stage, depth in enumerate(architecture.d[1:]):
                genomes[row, 2 + stage] = gene_index(depth, DEPTHS, f"d[{1 + stage}] (depth)")
            for place, width in enumerate(architecture.w):
                genomes[row, 6 + place] = gene_index(width, range(len(WIDTHS)), f"w[{place}] (width index)")
            for i, block in enumerate(self.block_list):
                if block.position < LEAST_BLOCKS[block.stage] + architecture.d[1 + block.stage]:
                    genomes[row, 12 + i] = gene_index(architecture.e[i], EXPANDS, f"e[{i}] (expand ratio)")
        return self.canonical(genomes)

    def _check_lengths(self, architecture: Architecture) -> None:
        stages = len(LEAST_BLOCKS)
        wanted = {"ks": 0, "e": len(self.block_list), "d": 1 + stages, "w": 2 + stages}
        for key, count in wanted.items():
            found = len(getattr(architecture, key))
            if found != count:
                raise ArchitectureError(f"{self.name} takes {count} entries in {key!r}, found {found}")

    # -- physical costs ----------------------------------------------------------------------------------------

    def _build_costs(self) -> tuple[NDArray[np.float64], ...]:
        widths = range(len(WIDTHS))
        stem = [
            self._stem_cost(r, bool(depth), self.stem_middle_widths[i], self.stem_widths[j])
            for r in self.resolutions
            for depth in STEM_DEPTHS
            for i in widths
            for j in widths
        ]
        tables = [np.array(stem)]
        for block in self.block_list:
            out = self.stage_widths[block.stage]
            entering = self.stem_widths if block.stage == 0 else self.stage_widths[block.stage - 1]
            # What enters a later block has the stage's own width.
            variants = [
                _bottleneck_cost(
                    before or out[j], self.middle_width(block.stage, j, e), out[j], block, reduced(r, block.reduction)
                )
                for r in self.resolutions
                for before in (entering if block.first else (0,))
                for j in widths
                for e in EXPANDS
            ]
            tables.append(np.concatenate([np.zeros((1, len(COST_NAMES))), np.array(variants)]))
        tables.append(
            np.array([self._head_cost(r, width) for r in self.resolutions for width in self.stage_widths[-1]])
        )
        return tuple(tables)

    def _stem_cost(self, r: int, middle: bool, inner: int, out: int) -> list[float]:
        """Cost of three 3x3 convolutions, the middle one optional with a shortcut, and a pooling by two."""
        pixels = reduced(r, 2) ** 2
        weights = self.image_channels * inner * 9 + inner + inner * out * 9 + out
        macs = (self.image_channels * inner + inner * out) * 9 * pixels
        steps = [
            self.image_channels * r**2 + inner * pixels,
            (inner + out) * pixels,
            out * (pixels + reduced(r, 4) ** 2),
        ]
        peak = max(steps)
        if middle:
            weights += inner * inner * 9 + inner
            macs += inner * inner * 9 * pixels
            steps += [2 * inner * pixels, 3 * inner * pixels]
            peak = max(peak, 3 * inner * pixels)
        return [1, 0, 0, 0, macs, 4.0 * sum(steps), weights, 4.0 * peak, 0]

    def _head_cost(self, r: int, width: int) -> list[float]:
        pixels = reduced(r, 32) ** 2
        live = 4.0 * width * (pixels + 1)
        return [1, 0, 0, 0, width * self.classes, live, width * self.classes + self.classes, live, 0]


def _blocks() -> tuple[ResNetBlock, ...]:
    found: list[ResNetBlock] = []
    reduction = 4
    for stage, least in enumerate(LEAST_BLOCKS):
        for position in range(least + max(DEPTHS)):
            stride = _STAGE_STRIDES[stage] if position == 0 else 1
            found.append(ResNetBlock(len(found), stage, position, stride, reduction))
            reduction *= stride
    return tuple(found)


def _bottleneck_cost(in_width: int, middle: int, out_width: int, block: ResNetBlock, side: int) -> list[float]:
    """Return one row of a slot's cost table (`COST_NAMES`); the 3x3 convolution counts as `macs_other`."""
    before, after = side**2, reduced(side, block.stride) ** 2
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
    return [1, in_width * middle * before, 0, project, 9 * middle**2 * after, 4.0 * sum(steps), weights, 4.0 * peak, 0]
