"""Read the one network of a bundle of the space `subnet`, whatever family it comes from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property

import numpy as np

from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.supernet_export.graph import Array, Graph, Statistics
from fleetnas.supernet_export.graph_tensors import graph_tensors, with_tensors
from fleetnas.supernet_export.slicing.layers import Shapes, Slicer, TensorSource
from fleetnas.supernet_export.spaces.fixed import FixedSpace


class FixedSlicer(Slicer):
    """Takes a network's structure from its family's slicer, and its weights, by layer, from the bundle."""

    def __init__(self, space: FixedSpace, parent: Slicer) -> None:
        """`parent` is the slicer of the space's parent."""
        self.space, self._parent = space, parent

    @cached_property
    def _structure(self) -> Graph:
        """The network with zeros for weights; they take no memory."""
        shapes = self._parent.bundle_shapes()
        zero = np.float32(0)
        return self._parent.slice(lambda name: np.broadcast_to(zero, shapes[name]), self.space.architecture, None)

    def checkpoint_shapes(self) -> Shapes:
        """Return the shapes of a checkpoint's tensors: those of a bundle's."""
        return self.bundle_shapes()

    def bundle_shapes(self) -> Shapes:
        """Return the shapes of the network's own tensors, by their names in `graph_tensors`."""
        return {name: array.shape for name, array in graph_tensors(self._structure).items()}

    def bundle_tensors(self, checkpoint: Mapping[str, Array]) -> dict[str, Array]:
        """Return the checkpoint's tensors unchanged."""
        return dict(checkpoint)

    def spellings(self, name: str) -> Iterable[str]:
        """Return the name itself: there is one spelling."""
        return (name,)

    def slice(self, tensor: TensorSource, architecture: Architecture, statistics: Statistics | None) -> Graph:
        """Return the network, with the layers of its family's slicer; `ArchitectureError` for every other network."""
        self.space.encode([architecture])
        return with_tensors(self._structure, tensor, statistics)
