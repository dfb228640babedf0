"""Design spaces of OFA's inverted-bottleneck families (MobileNetV3, ProxylessNAS) and of similar networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.fleet_protocol.errors import ArchitectureError, UsageError
from fleetnas.supernet_export.spaces.base import DesignSpace, Genomes, gene_index
from fleetnas.supernet_export.spaces.mbconv_costs import slot_costs
from fleetnas.supernet_export.spaces.mbconv_network import MBConvNetwork
from fleetnas.supernet_export.spaces.options import MAX_BLOCKS


class MBConvSpace(DesignSpace):
    """Elastic kernel, expand ratio, depth and resolution over an `MBConvNetwork`.

    Genes: resolution, depth per stage, kernel per block unless `stage_kernels` fixes one for each stage, expand ratio
    per block unless `tied`: then the i-th depth of a stage has the i-th expand ratio, as in CompOFA.
    Slots: stem, first block, each elastic block, head; a block's variant 0 is its absence.
    """

    #: What a space is called that was made of a network alone.
    name = "mbconv"

    def __init__(
        self,
        network: MBConvNetwork,
        *,
        kernels: Sequence[int] = (3, 5, 7),
        expands: Sequence[float] = (3, 4, 6),
        depths: Sequence[int] = (2, 3, 4),
        resolutions: Sequence[int],
        aspect: tuple[int, int] = (1, 1),
        tied: bool = False,
        stage_kernels: Sequence[int] | None = None,
    ) -> None:
        self.network = network
        self.classes, self.image_channels = network.classes, network.image_channels
        self.kernels, self.expands, self.depths = tuple(kernels), tuple(expands), tuple(depths)
        self.resolutions, self.aspect = tuple(sorted(resolutions)), aspect
        self.tied, self.stage_kernels = tied, None if stage_kernels is None else tuple(stage_kernels)
        self._check_choices()
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
        sizes = [self.input_size(r) for r in self.resolutions]
        self.slot_costs = slot_costs(network, self.kernels, self.expands, sizes)

    def _check_choices(self) -> None:
        stages = len(self.network.stage_blocks)
        if self.tied and len(self.depths) != len(self.expands):
            raise UsageError(
                f"{self.name} ties the i-th depth to the i-th expand ratio: {len(self.depths)} depths and "
                f"{len(self.expands)} expand ratios are not as many; give equally many"
            )
        if self.stage_kernels is not None and len(self.stage_kernels) != stages:
            raise UsageError(
                f"{self.name} has {stages} stages and stage_kernels has {len(self.stage_kernels)} kernel sizes; "
                "give one for each stage"
            )
        blocks = sum(self.network.stage_blocks)
        if blocks > MAX_BLOCKS:
            raise UsageError(
                f"the {stages} stages of {self.name} have {blocks} blocks in all, and an architecture holds "
                f"{MAX_BLOCKS}; give smaller depths"
            )

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
        # Depths beyond a stage's most blocks are the same network as that most.
        depth_choices = [len(np.unique(depths)) for depths in self._depth_table]
        kernels = [] if self.stage_kernels else [len(self.kernels)] * self.block_count
        expands = [] if self.tied else [len(self.expands)] * self.block_count
        return np.array([len(self.resolutions), *depth_choices, *kernels, *expands], dtype=np.int16)

    def expand_genes(self, genomes: Genomes) -> tuple[Genomes, Genomes, Genomes, Genomes]:
        """Return indices of resolution (n,), depth (n, stages), kernel (n, blocks) and expand ratio (n, blocks)."""
        start, b = 1 + self.stage_count, self.block_count
        depth, rest = genomes[:, 1:start], genomes[:, start:]
        kernels = self._fixed_kernels(len(genomes)) if self.stage_kernels else rest[:, :b]
        expands = depth[:, self._stage_of] if self.tied else rest[:, -b:]
        return genomes[:, 0], depth, kernels, expands

    def compress_genes(self, r: Genomes, d: Genomes, ks: Genomes, e: Genomes) -> Genomes:
        """Return genomes from the arrays of `expand_genes`; `ArchitectureError` where fixed or tied choices differ."""
        parts = [r[:, None], d]
        if self.stage_kernels:
            self._check_given(d, ks, self._fixed_kernels(len(ks)), self.kernels, "ks", "kernel")
        else:
            parts.append(ks)
        if self.tied:
            self._check_given(d, e, d[:, self._stage_of], self.expands, "e", "expand ratio")
        else:
            parts.append(e)
        return np.concatenate(parts, axis=1).astype(np.int16)

    def _fixed_kernels(self, count: int) -> Genomes:
        per_stage = np.array([self.kernels.index(k) for k in self.stage_kernels or ()], dtype=np.int16)
        return np.broadcast_to(per_stage[self._stage_of], (count, self.block_count))

    def _check_given(
        self, d: Genomes, found: Genomes, wanted: Genomes, choices: tuple[float, ...], key: str, what: str
    ) -> None:
        """Raise `ArchitectureError` if a present block has another choice than its stage's."""
        wrong = np.argwhere((found != wanted) & self.present(d))
        if len(wrong):
            row, block = wrong[0]
            raise ArchitectureError(
                f"{key}[{block}] ({what}) is {choices[found[row, block]]:g}; in {self.name} a stage of depth "
                f"{self.depths[d[row, self._stage_of[block]]]} has {choices[wanted[row, block]]:g} there"
            )

    def allowed_variants(self, depth_choice: int) -> NDArray[np.bool_]:
        """Return which (kernel, expand ratio) blocks may have at a depth choice, shape (kernels, expands, blocks)."""
        allowed = np.ones((len(self.kernels), len(self.expands), self.block_count), dtype=np.bool_)
        if self.tied:
            allowed &= (np.arange(len(self.expands)) == depth_choice)[None, :, None]
        if self.stage_kernels:
            allowed &= (np.arange(len(self.kernels))[:, None] == self._fixed_kernels(1))[:, None, :]
        return allowed

    def present(self, depth_index: NDArray[Any]) -> NDArray[np.bool_]:
        """Return which blocks exist, shape (n, blocks)."""
        depth = self._depth_table[np.arange(self.stage_count), depth_index]
        return np.asarray(self._position_of < depth[:, self._stage_of])

    def active(self, genomes: Genomes) -> NDArray[np.bool_]:
        """Return which genes matter, shape (n, G): kernels and expand ratios of absent blocks do not."""
        s = self.stage_count
        present = self.present(genomes[:, 1 : 1 + s])
        always = np.ones((len(genomes), 1 + s), dtype=np.bool_)
        per_block = [present] * ((not self.stage_kernels) + (not self.tied))
        return np.concatenate([always, *per_block], axis=1)

    @property
    def size(self) -> int:
        """Number of distinct networks, resolutions included."""
        per_block = (1 if self.stage_kernels else len(self.kernels)) * (1 if self.tied else len(self.expands))
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
        present, blocks = self.present(d), self.block_count
        columns, count = self._resolution_columns()
        kernels, both = blocks * len(self.kernels), blocks * (len(self.kernels) + len(self.expands))
        found = np.zeros((len(genomes), both + count), np.float32)
        row = np.arange(0, found.size, found.shape[1])[:, None]
        flat = found.reshape(-1)
        flat[row + np.arange(0, kernels, len(self.kernels)) + ks] = present
        flat[row + np.arange(kernels, both, len(self.expands)) + e] = present
        flat[row[:, 0] + both + columns[r]] = 1.0
        return found

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
