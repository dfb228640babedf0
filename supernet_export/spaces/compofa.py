"""Define `compofa` and `compofa-elastic`: OFA-MobileNetV3 with depth and expand ratio tied per stage.

Source: Sahni et al., *CompOFA* (ICLR 2021) and its authors' repository (gatech-sysml/CompOFA), from which the fixed
kernel sizes are taken.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fleetnas.fleet_protocol.errors import ArchitectureError
from fleetnas.supernet_export.spaces.base import Genomes
from fleetnas.supernet_export.spaces.ofa_mbv3 import OfaMbv3Space

#: Kernel size of every block of a stage.
STAGE_KERNELS = (3, 5, 3, 3, 5)


class CompOfaElasticSpace(OfaMbv3Space):
    """Depth 2/3/4 of a stage fixes its expand ratio to 3/4/6; kernels are elastic per block.

    Genes: resolution, depth per stage, kernel per block.
    """

    name = "compofa-elastic"

    @property
    def size(self) -> int:
        """Number of distinct networks, resolutions included."""
        per_stage = sum(len(self.kernels) ** depth for depth in self.depths)
        return int(len(self.resolutions) * per_stage**self.stage_count)

    def active(self, genomes: Genomes) -> NDArray[np.bool_]:
        """Return which genes matter, shape (n, G)."""
        s = self.stage_count
        always = np.ones((len(genomes), 1 + s), dtype=np.bool_)
        return np.concatenate([always, self.present(genomes[:, 1 : 1 + s])], axis=1)

    def allowed_variants(self, depth_choice: int) -> NDArray[np.bool_]:
        """Return which (kernel, expand ratio) blocks may have at a depth choice, shape (kernels, expands, blocks)."""
        allowed = np.zeros((len(self.kernels), len(self.expands), self.block_count), dtype=np.bool_)
        allowed[:, depth_choice] = True
        return allowed

    def _cardinalities(self) -> NDArray[np.int16]:
        return super()._cardinalities()[: 1 + self.stage_count + self.block_count]

    def expand_genes(self, genomes: Genomes) -> tuple[Genomes, Genomes, Genomes, Genomes]:
        """Return indices of resolution (n,), depth (n, stages), kernel (n, blocks) and expand ratio (n, blocks)."""
        s = self.stage_count
        depth = genomes[:, 1 : 1 + s]
        return genomes[:, 0], depth, genomes[:, 1 + s :], depth[:, self._stage_of]

    def compress_genes(self, r: Genomes, d: Genomes, ks: Genomes, e: Genomes) -> Genomes:
        """Return genomes from the arrays of `expand_genes`; `ArchitectureError` if genes are not tied like here."""
        self._check_tied(d, e, d[:, self._stage_of], self.expands, "e", "expand ratio")
        return np.concatenate([r[:, None], d, ks], axis=1).astype(np.int16)

    def _check_tied(
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


class CompOfaSpace(CompOfaElasticSpace):
    """`compofa-elastic` with one kernel size per stage: 243 networks at each resolution, few enough to enumerate.

    Genes: resolution, depth per stage.
    """

    name = "compofa"

    @property
    def size(self) -> int:
        """Number of distinct networks, resolutions included."""
        return int(len(self.resolutions) * len(self.depths) ** self.stage_count)

    def active(self, genomes: Genomes) -> NDArray[np.bool_]:
        """Return which genes matter, shape (n, G)."""
        return np.ones(genomes.shape, dtype=np.bool_)

    def allowed_variants(self, depth_choice: int) -> NDArray[np.bool_]:
        """Return which (kernel, expand ratio) blocks may have at a depth choice, shape (kernels, expands, blocks)."""
        fixed = np.arange(len(self.kernels))[:, None] == self._fixed_kernels(1)
        return np.asarray(super().allowed_variants(depth_choice) & fixed[:, None, :])

    def _cardinalities(self) -> NDArray[np.int16]:
        return super()._cardinalities()[: 1 + self.stage_count]

    def expand_genes(self, genomes: Genomes) -> tuple[Genomes, Genomes, Genomes, Genomes]:
        """Return indices of resolution (n,), depth (n, stages), kernel (n, blocks) and expand ratio (n, blocks)."""
        depth = genomes[:, 1:]
        return genomes[:, 0], depth, self._fixed_kernels(len(genomes)), depth[:, self._stage_of]

    def compress_genes(self, r: Genomes, d: Genomes, ks: Genomes, e: Genomes) -> Genomes:
        """Return genomes from the arrays of `expand_genes`; `ArchitectureError` if genes are not tied like here."""
        self._check_tied(d, ks, self._fixed_kernels(len(ks)), self.kernels, "ks", "kernel")
        return super().compress_genes(r, d, ks, e)[:, : 1 + self.stage_count]

    def _fixed_kernels(self, count: int) -> Genomes:
        per_stage = np.array([self.kernels.index(k) for k in STAGE_KERNELS], dtype=np.int16)
        return np.broadcast_to(per_stage[self._stage_of], (count, self.block_count))
