"""Lower layers to int8 TFLite operators, by the TFLite quantisation specification."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleetnas.supernet_export.emitters.tflite_flatbuffer import Quantisation, Tensor
from fleetnas.supernet_export.emitters.tflite_lowering import VALID, Lowering, Options, oihw, weight_shape
from fleetnas.supernet_export.graph import INPUT, OUTPUT, Conv, Graph, Linear
from fleetnas.supernet_export.quantisation import (
    HIGHEST,
    LOWEST,
    UNIT,
    AffineScale,
    QuantisedParameters,
    Ranges,
    activation_scale,
    quantise_parameters,
    quantised_conv,
)


class Int8Lowering(Lowering):
    """Makes int8 tensors between a float32 input and float32 logits."""

    def __init__(self, graph: Graph, batch: int, ranges: Ranges) -> None:
        self.ranges = ranges
        super().__init__(graph, batch)

    def begin(self, shape: tuple[int, ...]) -> None:
        """Quantise the float32 input."""
        super().begin(shape)
        self.values[INPUT] = self.model.operator("QUANTIZE", self.model.inputs, self.activation(INPUT, shape))

    def end(self, value: int) -> None:
        """Dequantise the logits."""
        logits = self.model.tensor(Tensor(OUTPUT, self.shape(value), np.float32))
        super().end(self.model.operator("DEQUANTIZE", (value,), logits))

    def activation(
        self, name: str, shape: tuple[int, ...], *, like: int | None = None, product: tuple[int, int] | None = None
    ) -> int:
        """Add an int8 activation of its observed range and return its index."""
        if like is not None:
            return self.model.tensor(replace(self.model.tensors[like], name=name, shape=shape, fill=None))
        # XNNPACK takes no product whose unit is 256 units of the result or more; only dead channels come near.
        least = math.prod(float(self.affine(factor).scale) for factor in product) / 128 if product else 0.0
        return self.quantised(name, shape, activation_scale(self.ranges, name, at_least=least))

    def lowest(self, like: int) -> int:
        """Add a scalar below every value of a tensor, with the tensor's own scale, as the padding operator requires."""

        def fill(out: NDArray[Any]) -> None:
            out[...] = LOWEST

        return self.model.tensor(replace(self.model.tensors[like], name="lowest", shape=(1,), fill=fill))

    def weights(self, layer: Conv, source: int) -> tuple[int, int]:
        """Return the tensors of the convolution's int8 weight and int32 bias."""
        return self.parameters(layer, quantised_conv(layer, self.affine(source).scale))

    def hard_sigmoid(self, layer: Conv, code: str, inputs: list[int], shape: tuple[int, ...], window: Options) -> int:
        """Append a convolution whose saturation is the hard sigmoid; return its output."""
        return self.model.operator(code, inputs, self.quantised(layer.name, shape, UNIT), **window)

    def hard_swish(self, name: str, value: int) -> int:
        """Append the product with the hard sigmoid: XNNPACK has no int8 HARD_SWISH, which would split its operators.

        The first product only relabels the integers; the sum saturates where the hard sigmoid does.
        """
        shape, pre = self.shape(value), self.affine(value)
        sixth = self.quantised(f"{name}/sixth", shape, AffineScale(np.float32(float(pre.scale) / 6), pre.zero_point))
        gate = self.quantised(f"{name}/gate", shape, UNIT)
        self.model.operator("MUL", (value, self.scalar(1 / 6)), sixth)
        self.model.operator("ADD", (sixth, self.scalar(1 / 2)), gate)
        return self.model.operator("MUL", (value, gate), self.activation(name, shape, product=(value, gate)))

    def linear(self, layer: Linear) -> int:
        """Append a 1x1 convolution: old runtimes take scales per channel there, but not in FULLY_CONNECTED."""
        batch, (classes, features) = self.shape(self.values[layer.source])[0], layer.weight.shape
        source = self.reshaped(self.values[layer.source], (batch, 1, 1, features))
        weight, bias = self.parameters(layer, quantise_parameters(layer.weight, layer.bias, self.affine(source).scale))
        out = self.activation(layer.name, (batch, 1, 1, classes), product=(source, weight))
        self.model.operator("CONV_2D", (source, weight, bias), out, Padding=VALID, StrideW=1, StrideH=1)
        return self.reshaped(out, (batch, classes))

    # -- int8 tensors ------------------------------------------------------------------------------------------

    def quantised(self, name: str, shape: tuple[int, ...], scale: AffineScale) -> int:
        """Add an activation of known scale."""
        quantisation = Quantisation(np.array([scale.scale]), scale.zero_point)
        return self.model.tensor(Tensor(name, shape, np.int8, quantisation))

    def scalar(self, value: float) -> int:
        """Add a constant that broadcasts, with a precision of seven bits."""
        if ("scalar", (value,)) not in self.shared:
            scale = Quantisation(np.array([value / HIGHEST], np.float32))
            self.shared["scalar", (value,)] = self.array("scalar", np.array([HIGHEST], np.int8), scale)
        return self.shared["scalar", (value,)]

    def parameters(self, layer: Conv | Linear, values: QuantisedParameters) -> tuple[int, int]:
        """Add constants for the weight, whose channels are on the last axis if it is depthwise, and the bias."""
        if isinstance(layer, Conv):
            shape, axis = weight_shape(layer), 3 if layer.groups > 1 else 0
        else:
            shape, axis = (len(layer.weight), 1, 1, layer.weight.shape[1]), 0

        def fill(out: NDArray[Any]) -> None:
            (oihw(out, layer) if isinstance(layer, Conv) else out[:, 0, 0])[...] = values.weight

        scales = Quantisation(values.scales, axis=axis)
        weight = self.model.tensor(Tensor(f"{layer.name}/weight", shape, np.int8, scales, fill))
        return weight, self.array(f"{layer.name}/bias", values.bias, Quantisation(values.bias_scales))

    def reshaped(self, source: int, shape: tuple[int, ...]) -> int:
        """Return the tensor in another shape."""
        if self.shape(source) == shape:
            return source
        name = f"{self.model.tensors[source].name}/reshaped"
        inputs = (source, self.constant("shape", shape, (len(shape),), np.int32))
        return self.model.operator("RESHAPE", inputs, self.activation(name, shape, like=source))

    def affine(self, tensor: int) -> AffineScale:
        """Return an activation's scale and zero point; for a weight, the largest scale."""
        quantisation = self.model.tensors[tensor].quantisation
        assert quantisation is not None
        return AffineScale(quantisation.scales.max(), quantisation.zero_point)
