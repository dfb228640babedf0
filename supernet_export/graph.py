"""Define the intermediate graph: a short list of layers with their weights, which every emitter reads.

Tensors are NCHW float32 and named by the layer that writes them; the graph's input is `INPUT`. Weights may be
views on a memory-mapped bundle: an emitter folds one layer at a time (`Conv.folded`), so a subnet is never held
twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fleetnas.supernet_export.model_metadata import ModelMetadata

Array = NDArray[np.float32]
Activation = Literal["none", "relu", "relu6", "h_swish", "h_sigmoid"]

#: Name of the graph's input tensor.
INPUT = "input"
#: Name of the output tensor, the logits.
OUTPUT = "logits"

#: Batch-norm statistics per convolution name: (mean, variance), each of shape (channels,).
Statistics: TypeAlias = Mapping[str, tuple[Array, Array]]


@dataclass(frozen=True, slots=True)
class BatchNorm:
    """Inference-time batch norm over a convolution's output channels."""

    gamma: Array
    beta: Array
    mean: Array
    variance: Array
    epsilon: float

    def scale(self) -> NDArray[np.float64]:
        """Factor of each channel."""
        scale: NDArray[np.float64] = self.gamma.astype(np.float64) / np.sqrt(
            self.variance.astype(np.float64) + self.epsilon
        )
        return scale


@dataclass(frozen=True, slots=True)
class Conv:
    """2-D convolution with symmetric zero padding, then batch norm or bias, then activation.

    `weight` has shape (out, in / groups, k, k). `groups` is 1 or, depthwise, the channel count.
    """

    name: str
    source: str
    weight: Array
    bias: Array | None
    norm: BatchNorm | None
    stride: int
    padding: int
    groups: int
    activation: Activation

    def folded(self) -> tuple[Array, Array]:
        """Return contiguous weight and bias with batch norm folded in."""
        weight, bias = np.empty(self.weight.shape, np.float32), np.empty(len(self.weight), np.float32)
        self.fold_weight(weight)
        self.fold_bias(bias)
        return weight, bias

    # Only element-wise IEEE operations in float64, rounded once: the same bytes on every processor, so that two
    # machines that build one subnet get one hash. numpy converts them block by block, without large temporaries.

    def fold_weight(self, out: Array) -> None:
        """Write the folded weight to `out`, of the weight's shape."""
        if self.norm is None:
            out[...] = self.weight
        else:
            scale = self.norm.scale()[:, None, None, None]
            np.multiply(self.weight, scale, out=out, dtype=np.float64, casting="same_kind")

    def fold_bias(self, out: Array) -> None:
        """Write the folded bias to `out`, shape (out channels,)."""
        bias = np.zeros(1) if self.bias is None else self.bias.astype(np.float64)
        if self.norm is None:
            out[...] = bias
        else:
            out[...] = (
                self.norm.beta.astype(np.float64) + (bias - self.norm.mean.astype(np.float64)) * self.norm.scale()
            )


@dataclass(frozen=True, slots=True)
class Linear:
    """Fully connected layer on a (N, C) or (N, C, 1, 1) tensor; `weight` has shape (out, in)."""

    name: str
    source: str
    weight: Array
    bias: Array


@dataclass(frozen=True, slots=True)
class Add:
    """Element-wise sum of two tensors of one shape, then activation."""

    name: str
    left: str
    right: str
    activation: Activation = "none"


@dataclass(frozen=True, slots=True)
class Scale:
    """A (N, C, H, W) tensor times a (N, C, 1, 1) gate: the end of squeeze-and-excite."""

    name: str
    source: str
    gate: str


@dataclass(frozen=True, slots=True)
class GlobalAveragePool:
    """Mean over height and width, kept as (N, C, 1, 1)."""

    name: str
    source: str


@dataclass(frozen=True, slots=True)
class MaxPool:
    """Max pooling; padding never wins."""

    name: str
    source: str
    kernel: int
    stride: int
    padding: int


@dataclass(frozen=True, slots=True)
class AveragePool:
    """Average pooling without padding; `ceil` keeps the last, partial window and averages what is inside."""

    name: str
    source: str
    kernel: int
    stride: int
    ceil: bool


Layer: TypeAlias = Conv | Linear | Add | Scale | GlobalAveragePool | MaxPool | AveragePool


@dataclass(frozen=True, slots=True)
class Graph:
    """A subnet: layers in execution order; the last one writes the logits."""

    layers: tuple[Layer, ...]
    #: (channels, height, width) of one input image.
    input_shape: tuple[int, int, int]
    classes: int
    #: What the model file says about itself; None: nothing.
    metadata: ModelMetadata | None = None

    def convolutions(self) -> Iterator[Conv]:
        """The convolutions, in order."""
        return (layer for layer in self.layers if isinstance(layer, Conv))

    @property
    def weight_bytes(self) -> int:
        """Bytes of the fp32 weights and biases after folding."""
        total = 0
        for layer in self.layers:
            if isinstance(layer, Conv):
                total += layer.weight.size + len(layer.weight)
            elif isinstance(layer, Linear):
                total += layer.weight.size + layer.bias.size
        return 4 * total
