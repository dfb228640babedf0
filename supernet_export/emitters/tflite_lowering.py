"""Lower layers to TFLite operators: NHWC, activations fused, batch norm folded.

PyTorch pads symmetrically, TFLite's SAME does not once the stride is 2: where the two differ for the size at hand,
padding is an operator of its own and the layer is VALID. XNNPACK fuses that operator into the convolution.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.supernet_export.emitters.tflite_flatbuffer import Model, Quantisation, Tensor
from fleetnas.supernet_export.graph import (
    INPUT,
    OUTPUT,
    Activation,
    Add,
    Array,
    AveragePool,
    Conv,
    GlobalAveragePool,
    Graph,
    Layer,
    Linear,
    MaxPool,
    Scale,
)
from fleetnas.supernet_export.quantisation import PRE

# Numbers of the schema's enumerations.
SAME, VALID = 0, 1
Options: TypeAlias = dict[str, int]
_FUSED: dict[Activation, int] = {"none": 0, "relu": 1, "relu6": 3}


@dataclass(frozen=True, slots=True)
class Window:
    """Placement of a sliding window along one side; `before` and `after` count padding."""

    outputs: int
    before: int
    after: int
    same: bool  #: TFLite's SAME places the window alike

    @classmethod
    def symmetric(cls, side: int, kernel: int, stride: int, padding: int) -> Window:
        """Place windows in PyTorch's floor mode; padding that no window reaches is left out."""
        outputs = (side + 2 * padding - kernel) // stride + 1
        total = max(0, (outputs - 1) * stride + kernel - side)
        same = outputs == -(-side // stride) and total // 2 == padding
        return cls(outputs, padding, max(0, total - padding), same)


class Lowering:
    """Turns layers into float32 operators, one by one. Int8 overrides how tensors are made."""

    def __init__(self, graph: Graph, batch: int) -> None:
        self.model = Model()
        self.values: dict[str, int] = {}
        self.non_negative: set[int] = set()
        self.shared: dict[tuple[str, tuple[float, ...]], int] = {}
        channels, height, width = graph.input_shape
        self.begin((batch, height, width, channels))
        for layer in graph.layers:
            self.values[layer.name] = self.lower(layer)
        self.end(self.values[graph.layers[-1].name])

    # -- tensors: what int8 makes otherwise --------------------------------------------------------------------

    def begin(self, shape: tuple[int, ...]) -> None:
        """Add the model's input."""
        self.values[INPUT] = self.model.tensor(Tensor(INPUT, shape, np.float32))
        self.model.set_input(self.values[INPUT])

    def end(self, value: int) -> None:
        """Make a tensor the model's output."""
        self.model.set_output(value, OUTPUT)

    def activation(
        self, name: str, shape: tuple[int, ...], *, like: int | None = None, product: tuple[int, int] | None = None
    ) -> int:
        """Add a tensor and return its index; it has values of `like`, or products of the two tensors in `product`."""
        del like, product  # they matter to int8 only
        return self.model.tensor(Tensor(name, shape, np.float32))

    def lowest(self, like: int) -> int:
        """Add a scalar below every value of the tensor `like`."""
        del like
        return self.constant("lowest", (float(np.finfo(np.float32).min),), (1,))

    def weights(self, layer: Conv, source: int) -> tuple[int, int]:
        """Add the convolution's weight, (out, k, k, in) or depthwise (1, k, k, channels), and its bias.

        A hard sigmoid's offset is part of the bias.
        """
        del source
        offset = np.float32(3.0 if layer.activation == "h_sigmoid" else 0.0)

        def fill_bias(out: Array) -> None:
            layer.fold_bias(out)
            out += offset

        weight = Tensor(
            f"{layer.name}/weight",
            weight_shape(layer),
            np.float32,
            fill=lambda out: layer.fold_weight(oihw(out, layer)),
        )
        bias = Tensor(f"{layer.name}/bias", (len(layer.weight),), np.float32, fill=fill_bias)
        return self.model.tensor(weight), self.model.tensor(bias)

    def hard_sigmoid(self, layer: Conv, code: str, inputs: list[int], shape: tuple[int, ...], window: Options) -> int:
        """Append relu6(x + 3) / 6 of a convolution whose bias has the offset already; return its output."""
        pre = self.activation(layer.name + PRE, shape)
        self.model.operator(code, inputs, pre, **window, FusedActivationFunction=_FUSED["relu6"])
        return self.model.operator(
            "MUL", (pre, self.constant("sixth", (1 / 6,), (1,))), self.activation(layer.name, shape)
        )

    def hard_swish(self, name: str, value: int) -> int:
        """Append a hard swish; return its output."""
        return self.model.operator("HARD_SWISH", (value,), self.activation(name, self.shape(value)))

    def linear(self, layer: Linear) -> int:
        """Append a fully connected layer; return its output."""
        source = self.values[layer.source]
        inputs = (
            source,
            self.array(f"{layer.name}/weight", layer.weight),
            self.array(f"{layer.name}/bias", layer.bias),
        )
        out = self.activation(layer.name, (self.shape(source)[0], len(layer.weight)))
        return self.model.operator("FULLY_CONNECTED", inputs, out)

    # -- tensors: shared with int8 -----------------------------------------------------------------------------

    def constant(self, name: str, values: tuple[float, ...], shape: tuple[int, ...], dtype: Any = np.float32) -> int:
        """Return a small constant, which is written once, even if it is used often."""
        if (name, values) not in self.shared:
            self.shared[name, values] = self.array(name, np.array(values, dtype).reshape(shape))
        return self.shared[name, values]

    def array(self, name: str, array: NDArray[Any], quantisation: Quantisation | None = None) -> int:
        """Add a constant, which is copied when the model is written."""

        def fill(out: NDArray[Any]) -> None:
            out[...] = array

        return self.model.tensor(Tensor(name, array.shape, array.dtype.type, quantisation, fill))

    def shape(self, tensor: int) -> tuple[int, ...]:
        """Return the shape of a tensor."""
        return self.model.tensors[tensor].shape

    # -- layers ------------------------------------------------------------------------------------------------

    def lower(self, layer: Layer) -> int:
        """Append the layer's operators; return the tensor of its output."""
        match layer:
            case Conv():
                return self.conv(layer)
            case Linear():
                return self.linear(layer)
            case Add():
                return self.add(layer)
            case Scale():
                source, gate = self.values[layer.source], self.values[layer.gate]
                out = self.activation(layer.name, self.shape(source), product=(source, gate))
                return self.model.operator("MUL", (source, gate), out)
            case GlobalAveragePool():
                source = self.values[layer.source]
                batch, *_, channels = self.shape(source)
                axes = self.constant("height and width", (1, 2), (2,), np.int32)
                out = self.activation(layer.name, (batch, 1, 1, channels))
                return self.model.operator("MEAN", (source, axes), out, KeepDims=True)
            case MaxPool():
                return self.max_pool(layer)
            case AveragePool():
                return self.average_pool(layer)

    def conv(self, layer: Conv) -> int:
        """Append a convolution and its activation; return its output."""
        kernel = layer.weight.shape[2]
        source, shape, scheme = self.placed(layer.name, self.values[layer.source], kernel, layer.stride, layer.padding)
        shape = (*shape[:3], len(layer.weight))
        options: Options = {"Padding": scheme, "StrideW": layer.stride, "StrideH": layer.stride}
        code = "CONV_2D"
        if layer.groups > 1:
            code, options = "DEPTHWISE_CONV_2D", options | {"DepthMultiplier": 1}
        weight, bias = self.weights(layer, source)
        if layer.activation == "h_sigmoid":
            return self.hard_sigmoid(layer, code, [source, weight, bias], shape, options)
        name = layer.name + PRE if layer.activation == "h_swish" else layer.name
        out = self.activation(name, shape, product=(source, weight))
        self.model.operator(
            code, (source, weight, bias), out, **options, FusedActivationFunction=_FUSED.get(layer.activation, 0)
        )
        return self.activated(layer.name, out, layer.activation)

    def add(self, layer: Add) -> int:
        """Append a sum and its activation; return its output. `UsageError` for a hard sigmoid."""
        left, right = self.values[layer.left], self.values[layer.right]
        if layer.activation == "h_sigmoid":
            raise UsageError(f"{layer.name}: no TFLite operator adds and applies h_sigmoid; apply it in a convolution")
        name = layer.name + PRE if layer.activation == "h_swish" else layer.name
        out = self.activation(name, self.shape(left))
        self.model.operator("ADD", (left, right), out, FusedActivationFunction=_FUSED.get(layer.activation, 0))
        return self.activated(layer.name, out, layer.activation)

    def activated(self, name: str, value: int, activation: Activation) -> int:
        """Append an activation that cannot be fused: TFLite has no fused h_swish."""
        if activation in ("relu", "relu6"):
            self.non_negative.add(value)
        if activation == "h_swish":
            return self.hard_swish(name, value)
        return value

    def max_pool(self, layer: MaxPool) -> int:
        """Append a max pooling; return its output."""
        before = self.values[layer.source]
        source, shape, scheme = self.placed(layer.name, before, layer.kernel, layer.stride, layer.padding, zero=False)
        out = self.activation(layer.name, shape, like=source)
        if before in self.non_negative:
            self.non_negative.add(out)
        return self.model.operator("MAX_POOL_2D", (source,), out, **_pool_options(layer, scheme))

    def average_pool(self, layer: AveragePool) -> int:
        """Append an average pooling; return its output. `UsageError` if TFLite cannot average the last window."""
        source = self.values[layer.source]
        batch, height, width, channels = self.shape(source)
        overhang = {-(side - layer.kernel) % layer.stride for side in (height, width)} if layer.ceil else {0}
        if max(overhang) and (layer.kernel != layer.stride or max(overhang) > 1):
            # SAME splits the padding evenly, and before the first row there must be none.
            raise UsageError(
                f"{layer.name}: TFLite averages a partial last window only where it lacks one row: "
                f"kernel {layer.kernel} and stride {layer.stride} on {height} x {width} lack {max(overhang)}"
            )
        up = layer.stride - 1 if layer.ceil else 0
        shape = (
            batch,
            (height - layer.kernel + up) // layer.stride + 1,
            (width - layer.kernel + up) // layer.stride + 1,
            channels,
        )
        out = self.activation(layer.name, shape, like=source)
        options = _pool_options(layer, SAME if max(overhang) else VALID)
        return self.model.operator("AVERAGE_POOL_2D", (source,), out, **options)

    def placed(
        self, name: str, source: int, kernel: int, stride: int, padding: int, *, zero: bool = True
    ) -> tuple[int, tuple[int, ...], int]:
        """Return the tensor to slide over, padded if SAME does not do it, the output shape, and the padding scheme.

        Padding is zero or else never wins a maximum.
        """
        batch, height, width, channels = self.shape(source)
        rows = Window.symmetric(height, kernel, stride, padding)
        columns = Window.symmetric(width, kernel, stride, padding)
        shape = (batch, rows.outputs, columns.outputs, channels)
        if padding == 0 or (rows.same and columns.same):
            return source, shape, SAME if padding else VALID
        margins = (0, 0, rows.before, rows.after, columns.before, columns.after, 0, 0)
        wide = (batch, height + rows.before + rows.after, width + columns.before + columns.after, channels)
        inputs = [source, self.constant("margins", margins, (4, 2), np.int32)]
        code = "PAD"
        if not zero and source not in self.non_negative:
            code = "PADV2"
            inputs.append(self.lowest(source))
        return self.model.operator(code, inputs, self.activation(f"{name}/pad", wide, like=source)), shape, VALID


def weight_shape(layer: Conv) -> tuple[int, ...]:
    """Return the shape of the convolution's weight in TFLite's layout."""
    count, depth, kernel, _ = layer.weight.shape
    return (1, kernel, kernel, count) if layer.groups > 1 else (count, kernel, kernel, depth)


def oihw(weight: NDArray[Any], layer: Conv) -> NDArray[Any]:
    """Return a view in PyTorch's layout of the convolution's weight in TFLite's."""
    return weight.transpose((3, 0, 1, 2) if layer.groups > 1 else (0, 3, 1, 2))


def _pool_options(layer: MaxPool | AveragePool, scheme: int) -> Options:
    return {
        "Padding": scheme,
        "StrideW": layer.stride,
        "StrideH": layer.stride,
        "FilterWidth": layer.kernel,
        "FilterHeight": layer.kernel,
    }
