"""Write the intermediate graph as an int8 ONNX file: every tensor between a QuantizeLinear and a DequantizeLinear.

onnxruntime turns this form (QDQ) into integer kernels where it has them, whatever the processor. Its own quantiser
writes it too, from a float model, in seconds and differently from one version to the next; here it takes
milliseconds and is the same everywhere, so that a device can build the model that it measures.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from fleetnas.supernet_export.emitters.onnx import OPEN_BATCH, OnnxWriter
from fleetnas.supernet_export.graph import (
    INPUT,
    OUTPUT,
    Activation,
    Add,
    AveragePool,
    Conv,
    Graph,
    Layer,
    Linear,
    MaxPool,
)
from fleetnas.supernet_export.quantisation import (
    HIGHEST,
    LOWEST,
    PRE,
    UNIT,
    AffineScale,
    QuantisedParameters,
    Ranges,
    activation_scale,
    quantise_parameters,
    quantised_conv,
)


def emit_int8_onnx(graph: Graph, ranges: Ranges, *, batch: int | None = 1) -> bytes:
    """Return an int8 ONNX model of the subnet, from the `ranges` of its activations.

    Input and output are those of the float32 model, `input` (batch, channels, height, width) and `logits`
    (batch, classes), both float32; a `batch` of None leaves it open. `UsageError` where a range is missing.
    """
    writer = _Int8Writer(graph, OPEN_BATCH if batch is None else batch, ranges)
    for layer in graph.layers:
        writer.add(layer)
    return writer.finish()


class _Int8Writer(OnnxWriter):
    """Quantises every activation but the logits. Activation functions that only clip are left to saturation."""

    def __init__(self, graph: Graph, batch: int | str, ranges: Ranges) -> None:
        super().__init__(graph, batch)
        self._ranges = ranges
        self._scales: dict[str, AffineScale] = {}
        self.quantise(INPUT, activation_scale(ranges, INPUT))

    def add(self, layer: Layer) -> None:
        match layer:
            case Linear():
                flat, scale = f"{layer.name}/flat", self._scales[layer.source]
                self.node("Flatten", [layer.source], flat, axis=1)
                self.quantise(flat, scale)
                names = self.parameters(layer.name, quantise_parameters(layer.weight, layer.bias, scale.scale))
                output = OUTPUT if layer is self._graph.layers[-1] else layer.name
                self.node("Gemm", [flat, *names], output, transB=1)
            case Add():
                raw = f"{layer.name}/sum" if layer.activation == "h_swish" else layer.name
                self.node("Add", [layer.left, layer.right], raw)
                self.activation(layer.activation, raw, layer.name)
            case _:
                super().add(layer)
        if layer is self._graph.layers[-1]:
            return
        if isinstance(layer, MaxPool | AveragePool):
            self.quantise(layer.name, self._scales[layer.source])
        else:
            activation = layer.activation if isinstance(layer, Conv | Add) else "none"
            self.quantise(layer.name, activation_scale(self._ranges, layer.name, activation))

    def conv(self, layer: Conv, output: str) -> None:
        names = self.parameters(layer.name, quantised_conv(layer, self._scales[layer.source].scale))
        raw = f"{layer.name}/conv" if layer.activation == "h_swish" else output
        self.convolve(layer, [layer.source, *names], raw)
        self.activation(layer.activation, raw, output)

    def activation(self, activation: Activation, source: str, output: str) -> None:
        """Append a hard swish as x times relu6(x + 3) / 6; the sum saturates at 0 and 6, and is read as 0 and 1."""
        if activation != "h_swish":
            return
        self.quantise(source, activation_scale(self._ranges, output + PRE))
        gate = f"{output}/gate"
        self.node("Add", [source, self.scalar(3.0)], gate)
        self.quantise(gate, AffineScale(np.float32(6 / 255), LOWEST), read_as=UNIT)
        self.node("Mul", [source, gate], output)

    def node(self, kind: str, inputs: list[str], output: str, **attributes: int | float | list[int]) -> None:
        """Append a node that reads quantised tensors dequantised."""
        inputs = [f"{name}/dequantised" if name in self._scales else name for name in inputs]
        super().node(kind, inputs, output, **attributes)

    def quantise(self, name: str, scale: AffineScale, *, read_as: AffineScale | None = None) -> None:
        """Round the tensor to int8; later nodes read it dequantised."""
        super().node("QuantizeLinear", [name, *self.scale(scale)], f"{name}/int8")
        super().node("DequantizeLinear", [f"{name}/int8", *self.scale(read_as or scale)], f"{name}/dequantised")
        self._scales[name] = scale

    def scale(self, scale: AffineScale) -> tuple[str, str]:
        """Return the names of the scale's and the zero point's constants."""
        zero_point = scale.zero_point - LOWEST
        names = f"scale {scale.scale.tobytes().hex()}", f"zero {zero_point}"
        self.integers(names[0], np.array(scale.scale, np.float32))
        self.integers(names[1], np.array(zero_point, np.uint8))
        return names

    def scalar(self, value: float) -> str:
        """Add a dequantised constant that broadcasts."""
        name = f"scalar {value:g}"
        if name not in self._scales:
            self.integers(f"{name}/int8", np.array(HIGHEST - LOWEST, np.uint8))
            scale = AffineScale(np.float32(value / (HIGHEST - LOWEST)), LOWEST)
            super().node("DequantizeLinear", [f"{name}/int8", *self.scale(scale)], f"{name}/dequantised")
            self._scales[name] = scale
        return name

    def parameters(self, name: str, values: QuantisedParameters) -> tuple[str, str]:
        """Return the names of a layer's dequantised weight and bias."""
        zeros = np.zeros(len(values.bias), np.int8)
        for part, integers, scales, zero in (
            ("weight", values.weight, values.scales, zeros),
            ("bias", values.bias, values.bias_scales, zeros.astype(np.int32)),
        ):
            inputs = [f"{name}.{part}/int", f"{name}.{part}/scale", f"{name}.{part}/zero"]
            for constant, array in zip(inputs, (integers, scales, zero), strict=True):
                self.integers(constant, array)
            super().node("DequantizeLinear", inputs, f"{name}.{part}", axis=0)
        return f"{name}.weight", f"{name}.bias"

    def integers(self, name: str, array: NDArray[Any]) -> None:
        """Add a constant that nodes may share."""
        if name not in self._constants:
            self._constants.add(name)
            tensor: TensorProto = numpy_helper.from_array(array, name)
            self._proto.initializer.append(tensor)
