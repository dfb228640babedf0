"""Design spaces of residual networks of bottlenecks, with elastic depth, expand ratio, width and stem.

Source: the `ofa` package's `OFAResNets` and `ResNetArchEncoder`, whose `d`, `e`, `w` are used here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.fleet_protocol.errors import ArchitectureError
from fleetnas.supernet_export.spaces.base import DesignSpace, Genomes, gene_index
from fleetnas.supernet_export.spaces.resnet_costs import slot_costs
from fleetnas.supernet_export.spaces.resnet_network import ResNetNetwork, ResNetWidths
from fleetnas.supernet_export.spaces.resnet_options import ResNetOptions


class ResNetSpace(DesignSpace):
    """Genes: resolution, stem depth, depth per stage, width (stem's middle, stem, stages), expand ratio per block.

    Slots: stem, each block, head; a block's variant 0 is its absence. Depths are blocks beyond a stage's least; the
    stem has its middle convolution at the largest of them. Entries of `w` are indices into `widths`.
    """

    def __init__(self, network: ResNetNetwork, chosen: ResNetOptions) -> None:
        self.network, self._chosen = network, chosen
        self.classes, self.image_channels = network.classes, network.image_channels
        self.resolutions, self.aspect = chosen.resolutions, chosen.aspect
        self.expands, self.depths, self.widths = chosen.expands, chosen.depths, chosen.widths
        #: Entries of `d[0]`: without and with the stem's middle convolution.
        self.stem_depths = tuple(sorted({min(self.depths), max(self.depths)}))
        self.least_blocks = network.least_blocks
        self.channels = ResNetWidths.of(network, self.widths)
        self.block_list = network.blocks(max(self.depths))
        self._stage_of = np.array([block.stage for block in self.block_list])
        self._position_of = np.array([block.position for block in self.block_list])
        stages, blocks = len(self.least_blocks), len(self.block_list)
        #: Columns where the genes of widths and of expand ratios begin.
        self._first_width, self._first_expand = 2 + stages, 4 + 2 * stages
        self.cardinalities = np.array(
            [len(self.resolutions), len(self.stem_depths)]
            + [len(self.depths)] * stages
            + [len(self.widths)] * (2 + stages)
            + [len(self.expands)] * blocks,
            dtype=np.int16,
        )
        self.slot_names = (
            "stem", *(f"stage{b.stage + 1}.block{b.position + 1}" for b in self.block_list), "head"
        )  # fmt: skip
        self.slot_costs = slot_costs(
            network,
            self.block_list,
            self.channels,
            self.expands,
            [depth == max(self.depths) for depth in self.stem_depths],
            [self.input_size(r) for r in self.resolutions],
        )

    @property
    def options(self) -> Mapping[str, Any]:
        """The constructor's options, for a bundle's manifest."""
        return self._chosen.stored()

    # -- genes -------------------------------------------------------------------------------------------------

    def _split(self, genomes: Genomes) -> tuple[Genomes, Genomes, Genomes, Genomes, Genomes]:
        """Return indices of resolution, stem depth, depths (n, stages), widths (n, 2 + stages) and expand ratios."""
        w, e = self._first_width, self._first_expand
        return genomes[:, 0], genomes[:, 1], genomes[:, 2:w], genomes[:, w:e], genomes[:, e:]

    def _present(self, depth_index: NDArray[Any]) -> NDArray[np.bool_]:
        blocks = np.array(self.least_blocks) + np.array(self.depths)[depth_index]
        return np.asarray(self._position_of < blocks[:, self._stage_of])

    def active(self, genomes: Genomes) -> NDArray[np.bool_]:
        """Return which genes matter, shape (n, G): those of absent blocks do not."""
        always = np.ones((len(genomes), self._first_expand), dtype=np.bool_)
        return np.concatenate([always, self._present(self._split(genomes)[2])], axis=1)

    @property
    def size(self) -> int:
        """Number of distinct networks, resolutions included."""
        total = len(self.resolutions) * len(self.stem_depths) * len(self.widths) ** (2 + len(self.least_blocks))
        for least in self.least_blocks:
            total *= sum(len(self.expands) ** (least + extra) for extra in self.depths)
        return int(total)

    # -- views -------------------------------------------------------------------------------------------------

    def slots(self, genomes: Genomes) -> NDArray[np.intp]:
        """Return the variant of each slot, shape (n, S)."""
        r, stem, d, w, e = (part.astype(np.intp) for part in self._split(genomes))
        widths, expands = len(self.widths), len(self.expands)
        first_slot = ((r * len(self.stem_depths) + stem) * widths + w[:, 0]) * widths + w[:, 1]
        out = w[:, 2:][:, self._stage_of]
        before = w[:, 1:-1][:, self._stage_of]
        same = 1 + (r[:, None] * widths + out) * expands + e
        entering = 1 + ((r[:, None] * widths + before) * widths + out) * expands + e
        variant = np.where(self._position_of == 0, entering, same)
        blocks = np.where(self._present(d), variant, 0)
        return np.concatenate([first_slot[:, None], blocks, (r * widths + w[:, -1])[:, None]], axis=1)

    def one_hot(self, genomes: Genomes) -> NDArray[np.float32]:
        """Return resolution, stem depth, widths, expand ratios: the layout of OFA's published predictor."""
        r, stem, d, w, e = self._split(genomes)
        n = len(genomes)
        columns, count = self._resolution_columns()
        expand = np.eye(len(self.expands), dtype=np.float32)[e] * self._present(d)[:, :, None]
        parts = [
            np.eye(count, dtype=np.float32)[columns[r]],
            np.eye(len(self.stem_depths), dtype=np.float32)[stem],
            np.eye(len(self.widths), dtype=np.float32)[w].reshape(n, -1),
            expand.reshape(n, -1),
        ]
        return np.concatenate(parts, axis=1, dtype=np.float32)

    def _resolution_columns(self) -> tuple[NDArray[np.intp], int]:
        """Return the column of each resolution in the one-hot resolution part, and that part's width."""
        return np.arange(len(self.resolutions)), len(self.resolutions)

    def decode(self, genomes: Genomes) -> list[Architecture]:
        """Return the canonical architectures of the genomes."""
        r, stem, d, w, e = self._split(genomes)
        expand = np.where(self._present(d), np.array(self.expands)[e], 0.0)
        depth = np.concatenate([np.array(self.stem_depths)[stem][:, None], np.array(self.depths)[d]], axis=1)
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
            genomes[row, 1] = gene_index(architecture.d[0], self.stem_depths, "d[0] (stem depth)")
            for stage, depth in enumerate(architecture.d[1:]):
                genomes[row, 2 + stage] = gene_index(depth, self.depths, f"d[{1 + stage}] (depth)")
            for place, width in enumerate(architecture.w):
                index = gene_index(width, range(len(self.widths)), f"w[{place}] (width index)")
                genomes[row, self._first_width + place] = index
            for i, block in enumerate(self.block_list):
                if block.position < self.least_blocks[block.stage] + architecture.d[1 + block.stage]:
                    index = gene_index(architecture.e[i], self.expands, f"e[{i}] (expand ratio)")
                    genomes[row, self._first_expand + i] = index
        return self.canonical(genomes)

    def _check_lengths(self, architecture: Architecture) -> None:
        stages = len(self.least_blocks)
        wanted = {"ks": 0, "e": len(self.block_list), "d": 1 + stages, "w": 2 + stages}
        for key, count in wanted.items():
            found = len(getattr(architecture, key))
            if found != count:
                raise ArchitectureError(f"{self.name} takes {count} entries in {key!r}, found {found}")
