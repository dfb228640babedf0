"""Quantise a subnet to int8 after training, from its weights and from the ranges of its activations.

The arithmetic is that of the TFLite quantisation specification and of onnxruntime's QDQ format alike: activations
asymmetric with one scale per tensor, weights symmetric with one scale per output channel, biases int32. A machine
that knows a subnet and its ranges builds the int8 model by itself: only element-wise IEEE operations, so that all
machines build the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.supernet_export.graph import INPUT, Activation, Array, Conv, Graph

#: Lowest and highest value per tensor: the input, the output of every layer but pools and hard sigmoids, and under
#: `<layer>/pre` what goes into a hard swish.
Ranges: TypeAlias = Mapping[str, tuple[float, float]]

LOWEST, HIGHEST = -128, 127
#: Suffix of the name under which `Ranges` holds the input of a layer's hard swish.
PRE = "/pre"
#: A scale never gets smaller: products of two stay normal float32 numbers.
_LEAST_SCALE = 2.0**-40
_NOMINAL = (-8.0, 8.0)


@dataclass(frozen=True, slots=True)
class AffineScale:
    """real = scale * (stored - zero_point), for a whole tensor."""

    scale: np.float32
    zero_point: int


#: What a hard sigmoid puts out. Saturating at its ends is the very clipping that makes it one.
UNIT = AffineScale(np.float32(1 / 255), LOWEST)


def activation_scale(
    ranges: Ranges, name: str, activation: Activation = "none", *, at_least: float = 0.0
) -> AffineScale:
    """Return the scale and zero point that cover the range of a tensor, zero included.

    `activation` is what ends in the tensor: its bounds, where it has any, bound the range, so that the integers'
    saturation can take its place. `UsageError` where the tensor was not observed.
    """
    if activation == "h_sigmoid":
        return UNIT
    if name not in ranges:
        raise UsageError(
            f"there is no activation range for {name!r}: the ranges belong to another subnet; observe this one's"
        )
    low, high = ranges[name]
    if not (math.isfinite(low) and math.isfinite(high)):
        raise UsageError(f"the activation range of {name!r} is {low} to {high}; ranges must be finite")
    low, high = min(low, 0.0), max(high, 0.0)
    if activation in ("relu", "relu6"):
        low = 0.0
    if activation == "relu6":
        high = min(high, 6.0)
    if name.endswith(PRE):
        low = max(low, -3.0)  # a hard swish makes zero of all below
    span = high - low if high > low else 1.0
    scale = np.float32(max(span / 255, at_least, _LEAST_SCALE))
    return AffineScale(scale, min(round(LOWEST - low / float(scale)), HIGHEST))


@dataclass(frozen=True, slots=True)
class QuantisedParameters:
    """A layer's weight, its scales per output channel, and its bias, whose scale is input scale times weight's."""

    weight: NDArray[np.int8]
    scales: Array
    bias: NDArray[np.int32]
    bias_scales: Array


def quantise_parameters(weight: Array, bias: Array, input_scale: np.float32) -> QuantisedParameters:
    """Return the int8 weight and int32 bias of a convolution or linear layer, output channels on the first axis.

    A channel's scale grows where its bias would not fit otherwise: channels that batch norm has all but silenced.
    """
    channels = len(weight)
    magnitude = np.abs(weight.reshape(channels, -1)).max(axis=1).astype(np.float64)
    for_bias = np.abs(bias.astype(np.float64)) / (float(input_scale) * 2.0**30)
    scales = np.maximum(np.maximum(magnitude / HIGHEST, for_bias), _LEAST_SCALE).astype(np.float32)
    per_channel = scales.astype(np.float64).reshape(-1, *[1] * (weight.ndim - 1))
    steps = np.rint(weight / per_channel)
    bias_scales = input_scale * scales
    return QuantisedParameters(
        np.clip(steps, -HIGHEST, HIGHEST).astype(np.int8),
        scales,
        np.rint(bias.astype(np.float64) / bias_scales.astype(np.float64)).astype(np.int32),
        bias_scales,
    )


def quantised_conv(layer: Conv, input_scale: np.float32) -> QuantisedParameters:
    """Return a convolution's integers, batch norm folded; for a hard sigmoid, of x / 6 + 1/2, to be saturated."""
    weight, bias = layer.folded()
    if layer.activation == "h_sigmoid":
        weight /= np.float32(6)
        bias /= np.float32(6)
        bias += np.float32(0.5)
    return quantise_parameters(weight, bias, input_scale)


def nominal_ranges(graph: Graph) -> dict[str, tuple[float, float]]:
    """Return ranges from batch norm alone, without an image: good for measuring latency, not for shipping.

    A batch norm's output has mean beta and deviation gamma in each channel; six deviations cover it (Nagel et al.,
    *Data-Free Quantization*, arXiv 1906.04721, section 4.2.1). What no batch norm bounds gets `_NOMINAL`.
    """
    ranges = {INPUT: _NOMINAL}
    for layer in graph.layers:
        low, high = _NOMINAL
        if isinstance(layer, Conv) and layer.norm is not None:
            spread = 6.0 * np.abs(layer.norm.gamma)
            low, high = float((layer.norm.beta - spread).min()), float((layer.norm.beta + spread).max())
        ranges[layer.name] = ranges[layer.name + PRE] = (low, high)
    return ranges
