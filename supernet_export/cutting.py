"""Write a bundle of one network: a subnet that was cut out of a supernet, or one that was trained on afterwards."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.supernet_export.accuracy.model import AccuracyPredictor
from fleetnas.supernet_export.bundle import (
    ACCURACY_PREFIX,
    SupernetBundle,
    write_bundle,
)
from fleetnas.supernet_export.graph import Graph, Statistics
from fleetnas.supernet_export.graph_tensors import graph_tensors
from fleetnas.supernet_export.manifest import AccuracyPredictorInfo, Manifest, Provenance
from fleetnas.supernet_export.slicing.subnet import slice_subnet
from fleetnas.supernet_export.spaces.base import DesignSpace
from fleetnas.supernet_export.spaces.fixed import FixedSpace


def fixed_space(space: DesignSpace, architecture: Architecture) -> FixedSpace:
    """Return the space of this one network; `ArchitectureError` where it is not in `space`."""
    if isinstance(space, FixedSpace):
        space.encode([architecture])
        return space
    return FixedSpace(space, architecture)


def cut_bundle(
    bundle: SupernetBundle, architecture: Architecture, path: Path, statistics: Statistics | None = None
) -> str:
    """Write the bundle of one subnet, untrained; return its SHA-256.

    Slicing it gives what slicing the supernet gives, to the bit. With `statistics` the network gets these in place of
    the supernet's running ones. Its accuracy is what the supernet's predictor says.

    `ArchitectureError` where the architecture is not in the bundle's space.
    """
    graph = slice_subnet(bundle, architecture, statistics)
    origin = f"cut out of {bundle.path.name}"
    accuracy = predicted_accuracy(bundle, architecture)
    return write_network(bundle, architecture, graph, path, origin=origin, accuracy=accuracy)


def predicted_accuracy(bundle: SupernetBundle, architecture: Architecture) -> tuple[float, str] | None:
    """Return the predicted top-1 of an architecture, a fraction, and its source; None without a predictor."""
    predictor, info = bundle.accuracy_predictor(), bundle.manifest.accuracy_predictor
    if predictor is None or info is None:
        return None
    genome = bundle.space.encode([architecture])
    return float(predictor.predict(bundle.space.one_hot(genome))[0]), f"predicted by the supernet's: {info.source}"


def write_network(
    parent: SupernetBundle,
    architecture: Architecture,
    graph: Graph,
    path: Path,
    *,
    origin: str,
    accuracy: tuple[float, str] | None = None,
) -> str:
    """Write `graph`, a network of this architecture with any weights, as a bundle; return the bundle's SHA-256.

    Args:
        parent: the supernet's bundle, whose data set, classes and preprocessing the network keeps. Its SHA-256 goes
            into the provenance.
        architecture: a point of the parent's space, of which `graph` has the layers.
        graph: the layers with their weights.
        path: file to write.
        origin: where the weights come from, one line.
        accuracy: top-1, a fraction, and where the figure comes from; a search needs it.

    Raises:
        ArchitectureError: the architecture is not in the parent's space.
        CorruptBundleError: the graph has not the layers of this architecture.
    """
    space = fixed_space(parent.space, architecture)
    tensors = graph_tensors(graph)
    info = None
    if accuracy is not None:
        top1, source = accuracy
        info = AccuracyPredictorInfo(source=source[:500])
        constant = AccuracyPredictor([np.zeros((1, 1), np.float32)], [np.array([top1], np.float32)])
        tensors |= {f"{ACCURACY_PREFIX}{name}": array for name, array in constant.tensors().items()}
    changes = {
        "space": space.name,
        "options": dict(space.options),
        "provenance": Provenance(source=origin[:500], sha256=parent.sha256),
        "accuracy_predictor": info,
    }
    return write_bundle(path, Manifest.model_validate(parent.manifest.model_dump() | changes), tensors)
