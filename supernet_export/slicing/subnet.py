"""Slice a subnet out of a bundle."""

from __future__ import annotations

from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.supernet_export.bundle import SupernetBundle
from fleetnas.supernet_export.graph import Graph, Statistics
from fleetnas.supernet_export.slicing.families import slicer_for


def slice_subnet(bundle: SupernetBundle, architecture: Architecture, statistics: Statistics | None = None) -> Graph:
    """Return the graph of `architecture`; its weights are views on the mapped bundle.

    With `statistics` (calibrated mean and variance per convolution) these take the place of the supernet's running
    ones. `ArchitectureError` where the bundle's space does not hold the architecture.
    """
    return slicer_for(bundle.space).slice(bundle.tensor, architecture, statistics)
