"""Define `subnet`: the design space of one network, which a fine-tuned winner is a bundle of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.fleet_protocol.errors import ArchitectureError
from fleetnas.supernet_export.spaces.base import DesignSpace, Genomes


class FixedSpace(DesignSpace):
    """One architecture of a `parent` space, of any family.

    Genes: the resolution and the rest, with one choice each. Slots and their costs are the parent's, with the one
    variant that the architecture has there; those of absent blocks cost nothing.
    """

    name = "subnet"

    def __init__(self, parent: DesignSpace, architecture: Architecture) -> None:
        """`ArchitectureError` where the architecture is not in the parent."""
        genome = parent.encode([architecture])
        self.parent = parent
        #: The architecture in the parent's canonical form.
        self.architecture = parent.decode(genome)[0]
        self.resolutions = (self.architecture.r,)
        self.classes, self.image_channels, self.aspect = parent.classes, parent.image_channels, parent.aspect
        self.cardinalities = np.ones(2, np.int16)
        self.slot_names = parent.slot_names
        chosen = parent.slots(genome)[0]
        self.slot_costs = tuple(
            table[variant : variant + 1] for table, variant in zip(parent.slot_costs, chosen.tolist(), strict=True)
        )

    @property
    def options(self) -> Mapping[str, Any]:
        """The space that the network comes from, with its options, and the architecture with OFA's keys."""
        return {
            "space": self.parent.name,
            "options": dict(self.parent.options),
            "architecture": self.architecture.model_dump(mode="json"),
        }

    def input_size(self, resolution: int) -> tuple[int, int]:
        """Return (height, width) of images in pixels, as the parent has them."""
        return self.parent.input_size(resolution)

    @property
    def size(self) -> int:
        """One network."""
        return 1

    def active(self, genomes: Genomes) -> NDArray[np.bool_]:
        """Return which genes matter, shape (n, G): all."""
        return np.ones(genomes.shape, dtype=np.bool_)

    def slots(self, genomes: Genomes) -> NDArray[np.intp]:
        """Return the variant of each slot, shape (n, S): the only one."""
        return np.zeros((len(genomes), len(self.slot_names)), dtype=np.intp)

    def one_hot(self, genomes: Genomes) -> NDArray[np.float32]:
        """Return ones, shape (n, 1): an accuracy predictor of one network is one number."""
        return np.ones((len(genomes), 1), np.float32)

    def decode(self, genomes: Genomes) -> list[Architecture]:
        """Return the architecture once per genome."""
        return [self.architecture] * len(genomes)

    def encode(self, architectures: Sequence[Architecture]) -> Genomes:
        """Return genomes of zeros, shape (n, G); `ArchitectureError` for every other network."""
        for found in self.parent.decode(self.parent.encode(architectures)):
            if found != self.architecture:
                raise ArchitectureError(
                    f"this bundle holds one network, {self.architecture.fingerprint}, and {found.fingerprint} is "
                    "another: take its architecture (`smallest` names it), or the supernet's bundle"
                )
        return np.zeros((len(architectures), len(self.cardinalities)), np.int16)
