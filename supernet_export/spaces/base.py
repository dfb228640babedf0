"""Define the interface of design spaces: populations are integer matrices, with one genome per row.

Two views of a genome are enough for everything else:

* **genes**: columns with `cardinalities[g]` choices each, on which sampling, mutation and crossover work;
* **slots**: the network's building blocks (stem, each block, head). `slots(genomes)` gives the variant of each slot,
  `slot_costs[s]` the physical costs of each variant. Every quantity that is additive over blocks (MACs, parameters,
  block latency tables, a linear latency predictor) is one gather and one sum over slots.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.fleet_protocol.errors import ArchitectureError, UsageError
from fleetnas.supernet_export.spaces.options import input_size

Genomes = NDArray[np.int16]
Floats = NDArray[np.float64]
#: An additive model: a constant, and per slot the contribution of each of its variants.
SlotTables = tuple[float, tuple[Floats, ...]]

#: Columns of every `slot_costs` table. MACs are multiply-accumulates of one image; bytes are fp32 activations
#: read and written; peak is the largest sum of simultaneously live activations inside the slot, in bytes. The MACs
#: of some spatial convolutions, part of another cost, stand by themselves too, for runtimes have code of their own for
#: them: depthwise kernels beyond 5x5, which may take several times as long per MAC, those of 5x5, and convolutions of
#: stride 2.
COST_NAMES: tuple[str, ...] = (
    "present",
    "macs_expand",
    "macs_depthwise",
    "macs_project",
    "macs_other",
    "bytes_moved",
    "parameters",
    "peak_bytes",
    "large_kernel_macs",
    "medium_kernel_macs",
    "strided_macs",
)


class DesignSpace(ABC):
    """A set of architectures, vectorised. `n` is the population size, `G` the number of genes, `S` of slots."""

    #: Registered name, such as `ofa-mbv3`.
    name: ClassVar[str]
    #: Choices per gene, shape (G,).
    cardinalities: NDArray[np.int16]
    #: Per slot, the physical costs of its variants: S arrays of shape (variants, len(COST_NAMES)).
    slot_costs: tuple[Floats, ...]
    #: Per slot, a name for messages and tables, such as `stage2.block1`.
    slot_names: tuple[str, ...]
    #: Input resolutions in pixels, ascending: the short side of images.
    resolutions: tuple[int, ...]
    #: Number of classes and of channels of one image.
    classes: int
    image_channels: int
    #: Ratio of height to width of images, in lowest terms.
    aspect: tuple[int, int] = (1, 1)

    @property
    @abstractmethod
    def options(self) -> Mapping[str, Any]:
        """The constructor's keyword arguments, JSON-serialisable, for a bundle's manifest."""

    @abstractmethod
    def active(self, genomes: Genomes) -> NDArray[np.bool_]:
        """Return which genes matter, shape (n, G): genes of skipped blocks do not."""

    @abstractmethod
    def slots(self, genomes: Genomes) -> NDArray[np.intp]:
        """Return the variant of each slot, shape (n, S): indices of rows of `slot_costs[s]`."""

    @abstractmethod
    def decode(self, genomes: Genomes) -> list[Architecture]:
        """Return the canonical architectures of the genomes."""

    @abstractmethod
    def encode(self, architectures: Sequence[Architecture]) -> Genomes:
        """Return canonical genomes, shape (n, G); `ArchitectureError` names an entry that is not in the space."""

    @abstractmethod
    def one_hot(self, genomes: Genomes) -> NDArray[np.float32]:
        """Return the accuracy predictors' input, shape (n, F): one-hot genes, zero for inactive blocks (OFA's)."""

    # -- shared by every space ---------------------------------------------------------------------------------

    def input_size(self, resolution: int) -> tuple[int, int]:
        """Return (height, width) of images in pixels: the short side is `resolution`, the long one follows `aspect`."""
        return input_size(resolution, self.aspect)

    @property
    def gene_count(self) -> int:
        """G, the number of genes."""
        return len(self.cardinalities)

    def canonical(self, genomes: Genomes) -> Genomes:
        """Set inactive genes to 0, so that equal rows are equal networks."""
        return np.where(self.active(genomes), genomes, 0).astype(np.int16)

    def sample(self, count: int, rng: np.random.Generator) -> Genomes:
        """Draw `count` canonical genomes, every gene uniform."""
        return self.canonical(rng.integers(0, self.cardinalities, (count, self.gene_count), dtype=np.int16))

    def mutate(self, genomes: Genomes, probability: float, rng: np.random.Generator) -> Genomes:
        """Draw each gene again with `probability`; return canonical genomes."""
        drawn = rng.integers(0, self.cardinalities, genomes.shape, dtype=np.int16)
        return self.canonical(np.where(rng.random(genomes.shape) < probability, drawn, genomes))

    def crossover(self, mothers: Genomes, fathers: Genomes, rng: np.random.Generator) -> Genomes:
        """Take each gene from either parent with equal probability; return canonical genomes."""
        return self.canonical(np.where(rng.random(mothers.shape) < 0.5, mothers, fathers))

    @property
    def size(self) -> int:
        """Number of distinct networks, resolutions included."""
        raise NotImplementedError(f"{self.name} does not count its networks")

    def enumerate(self, limit: int = 1_000_000) -> Genomes:
        """Return every canonical genome once, in lexicographic order; `UsageError` if there are more than `limit`."""
        if self.size > limit:
            raise UsageError(
                f"{self.name} holds {self.size:.3g} networks, more than the {limit:,} that an enumeration may hold; "
                "search it with bottom-up instead"
            )
        grid = np.indices(tuple(int(c) for c in self.cardinalities), dtype=np.int16)
        genomes = np.ascontiguousarray(grid.reshape(self.gene_count, -1).T)
        found: Genomes = genomes[(self.canonical(genomes) == genomes).all(axis=1)]
        return found

    def smallest(self) -> Genomes:
        """Return the genome of every gene's first choice, shape (1, G)."""
        return self.canonical(np.zeros((1, self.gene_count), dtype=np.int16))

    def largest(self) -> Genomes:
        """Return the genome of every gene's last choice, shape (1, G)."""
        return self.canonical((self.cardinalities - 1)[None, :].astype(np.int16))

    def costs(self, genomes: Genomes) -> Floats:
        """Return physical costs per slot, shape (n, S, len(COST_NAMES))."""
        chosen = self.slots(genomes)
        return np.stack([table[chosen[:, s]] for s, table in enumerate(self.slot_costs)], axis=1)

    def macs(self, genomes: Genomes) -> Floats:
        """Return the multiply-accumulates of one image, shape (n,)."""
        columns = [i for i, cost in enumerate(COST_NAMES) if cost.startswith("macs_")]
        return self._total(genomes, columns)

    def parameters(self, genomes: Genomes) -> Floats:
        """Return the number of weights and biases after batch norm is folded, shape (n,)."""
        return self._total(genomes, [COST_NAMES.index("parameters")])

    def peak_activation_bytes(self, genomes: Genomes) -> Floats:
        """Return the largest sum of live fp32 activations, in bytes, shape (n,)."""
        column = COST_NAMES.index("peak_bytes")
        chosen = self.slots(genomes)
        per_slot = [table[chosen[:, s], column] for s, table in enumerate(self.slot_costs)]
        peak: Floats = np.max(np.stack(per_slot, axis=1), axis=1)
        return peak

    def _total(self, genomes: Genomes, columns: list[int]) -> Floats:
        chosen = self.slots(genomes)
        total = np.zeros(len(genomes))
        for s, table in enumerate(self.slot_costs):
            total += table[:, columns].sum(axis=1)[chosen[:, s]]
        return total


def gene_index(value: float, choices: Sequence[float], what: str) -> int:
    """Return the position of `value` among `choices`; `ArchitectureError` names the gene and its choices."""
    try:
        return list(choices).index(value)
    except ValueError:
        raise ArchitectureError(
            f"{what} is {value:g}; it must be one of {', '.join(f'{c:g}' for c in choices)}"
        ) from None
