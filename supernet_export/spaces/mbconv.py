"""Design spaces of OFA's inverted-bottleneck families (MobileNetV3, ProxylessNAS) and of similar networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.fleet_protocol.errors import ArchitectureError
from fleetnas.supernet_export.spaces.base import DesignSpace, Genomes, gene_index
from fleetnas.supernet_export.spaces.mbconv_costs import slot_costs
from fleetnas.supernet_export.spaces.mbconv_network import MBConvNetwork


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
        self.slot_costs = slot_costs(network, self.kernels, self.expands, self.resolutions)

    # -- genes to the per-block view and back ------------------------------------------------------------------

    @property
    def stage_count(self) -> int:
        """Number of stages with elastic blocks."""
        return len(self.network.stage_blocks)

    @property
    def block_count(self) -> int:
        """Number of elastic blocks."""
        return len(self.block_list)

    def _cardinalities(self) -> NDArray[np.int16]:
        depth_choices = [len(self.depths) if most > 1 else 1 for most in self.network.stage_blocks]
        blocks = self.block_count
        return np.array(
            [len(self.resolutions), *depth_choices, *[len(self.kernels)] * blocks, *[len(self.expands)] * blocks],
            dtype=np.int16,
        )

    def expand_genes(self, genomes: Genomes) -> tuple[Genomes, Genomes, Genomes, Genomes]:
        """Return indices of resolution (n,), depth (n, stages), kernel (n, blocks) and expand ratio (n, blocks)."""
        s, b = self.stage_count, self.block_count
        return genomes[:, 0], genomes[:, 1 : 1 + s], genomes[:, 1 + s : 1 + s + b], genomes[:, 1 + s + b :]

    def compress_genes(self, r: Genomes, d: Genomes, ks: Genomes, e: Genomes) -> Genomes:
        """Return genomes from the arrays of `expand_genes`."""
        return np.concatenate([r[:, None], d, ks, e], axis=1).astype(np.int16)

    def allowed_variants(self, depth_choice: int) -> NDArray[np.bool_]:
        """Return which (kernel, expand ratio) blocks may have at a depth choice, shape (kernels, expands, blocks)."""
        return np.ones((len(self.kernels), len(self.expands), self.block_count), dtype=np.bool_)

    def present(self, depth_index: NDArray[Any]) -> NDArray[np.bool_]:
        """Return which blocks exist, shape (n, blocks)."""
        depth = self._depth_table[np.arange(self.stage_count), depth_index]
        return np.asarray(self._position_of < depth[:, self._stage_of])

    def active(self, genomes: Genomes) -> NDArray[np.bool_]:
        """Return which genes matter, shape (n, G): kernels and expand ratios of absent blocks do not."""
        s = self.stage_count
        present = self.present(genomes[:, 1 : 1 + s])
        always = np.ones((len(genomes), 1 + s), dtype=np.bool_)
        return np.concatenate([always, present, present], axis=1)

    @property
    def size(self) -> int:
        """Number of distinct networks, resolutions included."""
        per_block = len(self.kernels) * len(self.expands)
        total = len(self.resolutions)
        for depths in self._depth_table:
            total *= sum(per_block ** int(depth) for depth in np.unique(depths))
        return total

    # -- views -------------------------------------------------------------------------------------------------

    def slots(self, genomes: Genomes) -> NDArray[np.intp]:
        """Return the variant of each slot, shape (n, S)."""
        r, d, ks, e = (part.astype(np.intp) for part in self.expand_genes(genomes))
        variant = 1 + (r[:, None] * len(self.kernels) + ks) * len(self.expands) + e
        blocks = np.where(self.present(d), variant, 0)
        return np.concatenate([r[:, None], r[:, None], blocks, r[:, None]], axis=1)

    def one_hot(self, genomes: Genomes) -> NDArray[np.float32]:
        """Return kernel (blocks x 3), expand (blocks x 3), resolution: the layout of OFA's published predictor."""
        r, d, ks, e = self.expand_genes(genomes)
        present = self.present(d)[:, :, None]
        kernel = np.eye(len(self.kernels), dtype=np.float32)[ks] * present
        expand = np.eye(len(self.expands), dtype=np.float32)[e] * present
        columns, count = self._resolution_columns()
        resolution = np.eye(count, dtype=np.float32)[columns[r]]
        n = len(genomes)
        return np.concatenate([kernel.reshape(n, -1), expand.reshape(n, -1), resolution], axis=1, dtype=np.float32)

    def _resolution_columns(self) -> tuple[NDArray[np.intp], int]:
        """Return the column of each resolution in the one-hot resolution part, and that part's width."""
        return np.arange(len(self.resolutions)), len(self.resolutions)

    def decode(self, genomes: Genomes) -> list[Architecture]:
        """Return the canonical architectures of the genomes."""
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
        """Return canonical genomes, shape (n, G); `ArchitectureError` names an entry that is not in the space."""
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
                raise ArchitectureError(f"{self.name} takes {count} entries in {key!r}, found {found}")

    @property
    def options(self) -> Mapping[str, Any]:
        """The constructor's options, for a bundle's manifest."""
        return {"resolutions": list(self.resolutions)}
