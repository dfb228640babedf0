"""Name the weights of a graph, and give a graph other weights: how a bundle of one network keeps its tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

from fleetnas.fleet_protocol.errors import BundleError
from fleetnas.supernet_export.graph import Array, BatchNorm, Conv, Graph, Layer, Linear, Statistics

#: A tensor by its name.
TensorByName: TypeAlias = Callable[[str], Array]

_NORM_PARTS = ("weight", "bias", "running_mean", "running_var")


def graph_tensors(graph: Graph) -> dict[str, Array]:
    """Return the weights of a graph by name, batch norm unfolded: `<layer>.weight`, `.bias`, `.bn.weight`, ...

    The parts of a batch norm have torch's names: `weight` (gamma), `bias` (beta), `running_mean`, `running_var`.
    """
    found: dict[str, Array] = {}
    for layer in graph.layers:
        if isinstance(layer, Conv | Linear):
            found[f"{layer.name}.weight"] = layer.weight
            if layer.bias is not None:
                found[f"{layer.name}.bias"] = layer.bias
        if isinstance(layer, Conv) and layer.norm is not None:
            norm = layer.norm
            for part, array in zip(_NORM_PARTS, (norm.gamma, norm.beta, norm.mean, norm.variance), strict=True):
                found[f"{layer.name}.bn.{part}"] = array
    return found


def with_tensors(graph: Graph, tensor: TensorByName, statistics: Statistics | None = None) -> Graph:
    """Return the graph with weights of these names in place of its own.

    `statistics` (mean and variance per convolution) take the place of the running ones. `BundleError` where they are
    those of another graph.
    """
    return replace(graph, layers=tuple(_with_tensors(layer, tensor, statistics) for layer in graph.layers))


def _with_tensors(layer: Layer, tensor: TensorByName, statistics: Statistics | None) -> Layer:
    match layer:
        case Conv():
            bias = None if layer.bias is None else tensor(f"{layer.name}.bias")
            norm = None if layer.norm is None else _norm(layer.name, layer.norm, tensor, statistics)
            return replace(layer, weight=tensor(f"{layer.name}.weight"), bias=bias, norm=norm)
        case Linear():
            return replace(layer, weight=tensor(f"{layer.name}.weight"), bias=tensor(f"{layer.name}.bias"))
        case _:
            return layer


def _norm(name: str, norm: BatchNorm, tensor: TensorByName, statistics: Statistics | None) -> BatchNorm:
    gamma, beta, mean, variance = (tensor(f"{name}.bn.{part}") for part in _NORM_PARTS)
    if statistics is not None:
        mean, variance = statistics_of(statistics, name, len(gamma))
    return BatchNorm(gamma, beta, mean, variance, norm.epsilon)


def statistics_of(statistics: Statistics, conv: str, channels: int) -> tuple[Array, Array]:
    """Return the re-estimated mean and variance of convolution `conv`, each (channels,); `BundleError` without them."""
    if conv not in statistics or any(part.shape != (channels,) for part in statistics[conv]):
        raise BundleError(
            f"calibrated statistics must give {channels} means and variances for {conv!r} and do not: they belong "
            "to another architecture; re-estimate them for this one"
        )
    return statistics[conv]
