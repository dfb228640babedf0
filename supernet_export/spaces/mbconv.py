"""Design spaces of OFA's inverted-bottleneck families (MobileNetV3, ProxylessNAS) and of those built like them.

Source of the layouts: Cai et al., *Once-for-All* (ICLR 2020), and the state dicts that its authors publish.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.fleet_protocol.errors import ArchitectureError
from fleetnas.supernet_export.spaces.base import COST_NAMES, DesignSpace, Genomes, gene_index

Activation = Literal["none", "relu", "relu6", "h_swish", "h_sigmoid"]


def make_divisible(value: float, divisor: int = 8) -> int:
    """Channels rounded to a multiple of `divisor`, never more than 10 % down (MobileNet's rule)."""
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
        """The elastic blocks in order, the fixed first block left out."""
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
        return self.stride == 1 and self.in_width == self.out_width

    def middle_width(self, expand: float) -> int:
        """Channels of the depthwise convolution at an expand ratio."""
        return make_divisible(round(self.in_width * expand))


def squeeze_width(channels: int) -> int:
    """Channels inside squeeze-and-excite."""
    return make_divisible(channels // 4)


def reduced(size: int, by: int) -> int:
    """Side of a feature map after strides whose product is `by` (a power of two), each rounding up."""
    return -(-size // by)


class MBConvSpace(DesignSpace):
    """Elastic kernel, expand ratio, depth and resolution over an `MBConvNetwork`.

    Genes: resolution, depth per stage, kernel per block, expand ratio per block. Spaces that tie genes
    together (CompOFA) override `expand_genes`, `compress_genes` and `active`.
    Slots: stem, first block, each elastic block, head; a block's variant 0 is its absence.
    """

    def __init__(
        self,
        network: MBConvNetwork,
        *,
        kernels: Sequence[int] = (3, 5, 7),
        expands: Sequence[float] = (3, 4, 6),
        depths: Sequence[int] = (2, 3, 4),
        resolutions: Sequence[int],
    ) -> None:
        self.network = network
        self.kernels, self.expands, self.depths = tuple(kernels), tuple(expands), tuple(depths)
        self.resolutions = tuple(sorted(resolutions))
        self.block_list = network.blocks()
        self._stage_of = np.array([block.stage for block in self.block_list])
        self._position_of = np.array([block.position for block in self.block_list])
        self._depth_table = np.array(
            [[min(d, most) for d in self.depths] for most in network.stage_blocks], dtype=np.intp
        )
        self.cardinalities = self._cardinalities()
        self.slot_names = (
            "stem",
            "first_block",
            *(f"stage{b.stage + 1}.block{b.position + 1}" for b in self.block_list),
            "head",
        )
        self.slot_costs = self._build_costs()

    # -- genes to the per-block view and back ------------------------------------------------------------------

    @property
    def stage_count(self) -> int:
        return len(self.network.stage_blocks)

    @property
    def block_count(self) -> int:
        return len(self.block_list)

    def _cardinalities(self) -> NDArray[np.int16]:
        depth_choices = [len(self.depths) if most > 1 else 1 for most in self.network.stage_blocks]
        blocks = self.block_count
        return np.array(
            [len(self.resolutions), *depth_choices, *[len(self.kernels)] * blocks, *[len(self.expands)] * blocks],
            dtype=np.int16,
        )

    def expand_genes(self, genomes: Genomes) -> tuple[Genomes, Genomes, Genomes, Genomes]:
        """Indices of resolution (n,), depth (n, stages), kernel (n, blocks) and expand ratio (n, blocks)."""
        s, b = self.stage_count, self.block_count
        return genomes[:, 0], genomes[:, 1 : 1 + s], genomes[:, 1 + s : 1 + s + b], genomes[:, 1 + s + b :]

    def compress_genes(self, r: Genomes, d: Genomes, ks: Genomes, e: Genomes) -> Genomes:
        """Genomes from the arrays that `expand_genes` returns."""
        return np.concatenate([r[:, None], d, ks, e], axis=1).astype(np.int16)

    def allowed_variants(self, depth_choice: int) -> NDArray[np.bool_]:
        """Which (kernel, expand ratio) a block may have, (kernels, expands, blocks), at its stage's depth choice."""
        return np.ones((len(self.kernels), len(self.expands), self.block_count), dtype=np.bool_)

    def present(self, depth_index: NDArray[Any]) -> NDArray[np.bool_]:
        """Which blocks exist, shape (n, blocks)."""
        depth = self._depth_table[np.arange(self.stage_count), depth_index]
        return np.asarray(self._position_of < depth[:, self._stage_of])

    def active(self, genomes: Genomes) -> NDArray[np.bool_]:
        s = self.stage_count
        present = self.present(genomes[:, 1 : 1 + s])
        always = np.ones((len(genomes), 1 + s), dtype=np.bool_)
        return np.concatenate([always, present, present], axis=1)

    @property
    def size(self) -> int:
        per_block = len(self.kernels) * len(self.expands)
        total = len(self.resolutions)
        for depths in self._depth_table:
            total *= sum(per_block ** int(depth) for depth in np.unique(depths))
        return total

    # -- views -------------------------------------------------------------------------------------------------

    def slots(self, genomes: Genomes) -> NDArray[np.intp]:
        r, d, ks, e = (part.astype(np.intp) for part in self.expand_genes(genomes))
        variant = 1 + (r[:, None] * len(self.kernels) + ks) * len(self.expands) + e
        blocks = np.where(self.present(d), variant, 0)
        return np.concatenate([r[:, None], r[:, None], blocks, r[:, None]], axis=1)

    def one_hot(self, genomes: Genomes) -> NDArray[np.float32]:
        """Kernel (blocks x 3), expand (blocks x 3), resolution: the layout of OFA's published predictor."""
        r, d, ks, e = self.expand_genes(genomes)
        present = self.present(d)[:, :, None]
        kernel = np.eye(len(self.kernels), dtype=np.float32)[ks] * present
        expand = np.eye(len(self.expands), dtype=np.float32)[e] * present
        columns, count = self._resolution_columns()
        resolution = np.eye(count, dtype=np.float32)[columns[r]]
        n = len(genomes)
        return np.concatenate([kernel.reshape(n, -1), expand.reshape(n, -1), resolution], axis=1, dtype=np.float32)

    def _resolution_columns(self) -> tuple[NDArray[np.intp], int]:
        """Column of each resolution in the one-hot resolution part, and that part's width."""
        return np.arange(len(self.resolutions)), len(self.resolutions)

    def decode(self, genomes: Genomes) -> list[Architecture]:
        r, d, ks, e = self.expand_genes(genomes)
        present = self.present(d)
        depth = self._depth_table[np.arange(self.stage_count), d]
        kernel = np.where(present, np.array(self.kernels)[ks], 0)
        expand = np.where(present, np.array(self.expands)[e], 0)
        side = np.array(self.resolutions)[r]
        return [
            Architecture(ks=tuple(k), e=tuple(x), d=tuple(layers), r=int(pixels))
            for k, x, layers, pixels in zip(
                kernel.tolist(), expand.tolist(), depth.tolist(), side.tolist(), strict=True
            )
        ]

    def encode(self, architectures: Sequence[Architecture]) -> Genomes:
        n, s, b = len(architectures), self.stage_count, self.block_count
        r, d = np.zeros(n, np.int16), np.zeros((n, s), np.int16)
        ks, e = np.zeros((n, b), np.int16), np.zeros((n, b), np.int16)
        for row, architecture in enumerate(architectures):
            self._check_lengths(architecture)
            r[row] = gene_index(architecture.r, self.resolutions, "r (resolution)")
            for stage in range(s):
                table = np.unique(self._depth_table[stage]).tolist()
                d[row, stage] = gene_index(architecture.d[stage], table, f"d[{stage}] (depth)")
            for i, block in enumerate(self.block_list):
                if block.position < architecture.d[block.stage]:
                    ks[row, i] = gene_index(architecture.ks[i], self.kernels, f"ks[{i}] (kernel)")
                    e[row, i] = gene_index(architecture.e[i], self.expands, f"e[{i}] (expand ratio)")
        return self.canonical(self.compress_genes(r, d, ks, e))

    def _check_lengths(self, architecture: Architecture) -> None:
        wanted = {"ks": self.block_count, "e": self.block_count, "d": self.stage_count, "w": 0}
        for key, count in wanted.items():
            found = len(getattr(architecture, key))
            if found != count:
                raise ArchitectureError(f"{self.name} wants {count} entries in {key!r}, found {found}")

    @property
    def options(self) -> Mapping[str, Any]:
        return {"resolutions": list(self.resolutions)}

    # -- physical costs ----------------------------------------------------------------------------------------

    def _build_costs(self) -> tuple[NDArray[np.float64], ...]:
        net = self.network
        stem = np.array([self._stem_cost(r) for r in self.resolutions])
        first = np.array([self._first_block_cost(r) for r in self.resolutions])
        head = np.array([self._head_cost(r) for r in self.resolutions])
        tables = [stem, first]
        for block in self.block_list:
            absent = np.zeros((1, len(COST_NAMES)))
            variants = [
                block_cost(
                    block.in_width,
                    block.middle_width(e),
                    block.out_width,
                    k,
                    block.stride,
                    reduced(r, block.reduction),
                    squeeze=block.squeeze,
                    residual=block.residual,
                )
                for r in self.resolutions
                for k in self.kernels
                for e in self.expands
            ]
            tables.append(np.concatenate([absent, np.array(variants)]))
        assert net.stage_blocks
        return (*tables, head)

    def _stem_cost(self, r: int) -> list[float]:
        net = self.network
        out = reduced(r, net.stem_stride) ** 2
        weights = net.image_channels * net.stem_width * 9
        live = 4.0 * (net.image_channels * r**2 + net.stem_width * out)
        return [1, 0, 0, 0, weights * out, live, weights + net.stem_width, live, 0]

    def _first_block_cost(self, r: int) -> list[float]:
        net = self.network
        return block_cost(
            net.stem_width,
            net.stem_width,
            net.first_block_width,
            3,
            1,
            reduced(r, net.stem_stride),
            squeeze=False,
            residual=net.first_block_residual and net.stem_width == net.first_block_width,
            expand=False,
        )

    def _head_cost(self, r: int) -> list[float]:
        net = self.network
        last = net.stage_widths[-1]
        side = r
        for stride in (net.stem_stride, *net.stage_strides):
            side = reduced(side, stride)
        pixels = side**2
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
        return [1, 0, 0, 0, macs, live, weights, live, 0]


def block_cost(
    in_width: int,
    middle: int,
    out_width: int,
    kernel: int,
    stride: int,
    side: int,
    *,
    squeeze: bool,
    residual: bool,
    expand: bool = True,
) -> list[float]:
    """One row of a slot's cost table (`COST_NAMES`) for an inverted bottleneck on a `side` x `side` input."""
    before, after = side**2, reduced(side, stride) ** 2
    inner = squeeze_width(middle) if squeeze else 0
    kept = in_width * before if residual else 0
    steps = [(middle * before, middle * after), (middle * after, out_width * after)]
    depthwise = middle * kernel**2 * after
    weights = middle * kernel**2 + middle + middle * out_width + out_width
    if expand:
        steps.insert(0, (in_width * before, middle * before))
        weights += in_width * middle + middle
    if squeeze:
        steps.append((2 * middle * after, middle * after))
        weights += 2 * middle * inner + middle + inner
    if residual:
        steps.append((2 * out_width * after, out_width * after))
    moved = sum(read + written for read, written in steps)
    # The block's input is the first step's own operand; while it runs it is not counted twice.
    peak = max(read + written + (kept if i else 0) for i, (read, written) in enumerate(steps))
    return [
        1,
        in_width * middle * before if expand else 0,
        depthwise,
        middle * out_width * after,
        2 * middle * inner,
        4.0 * moved,
        weights,
        4.0 * peak,
        depthwise if kernel > 5 else 0,
    ]
