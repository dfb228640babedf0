"""Define the interface of a family of supernets whose subnets are sliced without its training code."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.supernet_export.graph import Array, BatchNorm, Graph, Statistics
from fleetnas.supernet_export.graph_tensors import statistics_of

#: A bundle's tensor by name.
TensorSource: TypeAlias = Callable[[str], Array]
Shapes: TypeAlias = dict[str, tuple[int, ...]]


class Slicer(ABC):
    """Names, shapes and slicing of one design space's supernet.

    Tensors have one canonical name each: that of the published checkpoints, with the names that wrap the
    elastic modules (`conv.conv`, `bn.bn`, `linear.linear`) written once.
    """

    @abstractmethod
    def checkpoint_shapes(self) -> Shapes:
        """Return the shapes of the tensors that a checkpoint must hold, under canonical names."""

    def optional_shapes(self) -> Shapes:
        """Return the shapes of further tensors, of which a checkpoint holds all or none."""
        return {}

    @abstractmethod
    def bundle_shapes(self) -> Shapes:
        """Return the shapes of a bundle's tensors, in which everything independent of the architecture is computed."""

    @abstractmethod
    def bundle_tensors(self, checkpoint: Mapping[str, Array]) -> dict[str, Array]:
        """Return a bundle's tensors from a checkpoint's, both under canonical names."""

    @abstractmethod
    def spellings(self, name: str) -> Iterable[str]:
        """Return the canonical names that a checkpoint's `name` may stand for, the likeliest first."""

    @abstractmethod
    def slice(self, tensor: TensorSource, architecture: Architecture, statistics: Statistics | None) -> Graph:
        """Return the subnet; `ArchitectureError` if the architecture is not in the space."""


def norm_shapes(prefix: str, channels: int) -> Shapes:
    """Return the names of the four vectors of a batch norm."""
    return {f"{prefix}.{part}": (channels,) for part in ("weight", "bias", "running_mean", "running_var")}


def sliced_norm(
    tensor: TensorSource, prefix: str, channels: int, epsilon: float, conv: str, statistics: Statistics | None
) -> BatchNorm:
    """Return the first `channels` of a batch norm, with the re-estimated statistics of convolution `conv`, if given."""
    gamma, beta = tensor(f"{prefix}.weight")[:channels], tensor(f"{prefix}.bias")[:channels]
    if statistics is None:
        mean, variance = tensor(f"{prefix}.running_mean")[:channels], tensor(f"{prefix}.running_var")[:channels]
    else:
        mean, variance = statistics_of(statistics, conv, channels)
    return BatchNorm(gamma, beta, mean, variance, epsilon)
