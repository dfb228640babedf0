"""Slice a subnet out of a supernet's weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.supernet_export.graph import Array, Graph, Statistics
from fleetnas.supernet_export.model_metadata import ModelMetadata
from fleetnas.supernet_export.slicing.families import slicer_for
from fleetnas.supernet_export.spaces.base import DesignSpace


class SupernetWeights(Protocol):
    """A design space with its weights; a `SupernetBundle` is one."""

    @property
    def space(self) -> DesignSpace:
        """Space that subnets are of."""

    @property
    def model_metadata(self) -> ModelMetadata | None:
        """What model files of its subnets say about themselves; None: nothing."""

    def tensor(self, name: str) -> Array:
        """Return a tensor of the supernet by its name in the bundle."""


def slice_subnet(weights: SupernetWeights, architecture: Architecture, statistics: Statistics | None = None) -> Graph:
    """Return the graph of `architecture`; its weights are views on the supernet's.

    With `statistics` (calibrated mean and variance per convolution) these take the place of the supernet's running
    ones. `ArchitectureError` where the space does not hold the architecture.
    """
    graph = slicer_for(weights.space).slice(weights.tensor, architecture, statistics)
    return replace(graph, metadata=weights.model_metadata)
