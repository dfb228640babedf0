"""Write the intermediate graph as an ONNX file: batch norm folded, static shapes, the same bytes everywhere.

The structure of the model is a few kilobytes and is written by the onnx library. The weights are then written by
hand, framed as protobuf frames them, straight into the final buffer: every layer is folded where it will lie, so a
model costs no more memory than its own size.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

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

#: Both are read by every onnxruntime from 1.17 on, and by older ones.
OPSET = 17
IR_VERSION = 8

_FLOAT = onnx.TensorProto.FLOAT
#: Protobuf tags, field number and wire type "length-delimited": ModelProto.graph, GraphProto.initializer,
#: TensorProto.raw_data.
_GRAPH_TAG, _INITIALIZER_TAG, _RAW_DATA_TAG = b"\x3a", b"\x2a", b"\x4a"


def emit_onnx(graph: Graph, *, batch: int = 1) -> bytes:
    """Return an ONNX model of the subnet: `input` (batch, channels, height, width) to `logits` (batch, classes)."""
    writer = OnnxWriter(graph, batch)
    for layer in graph.layers:
        writer.add(layer)
    return writer.finish()


def model_sha256(model: bytes) -> str:
    """Return the hash that identifies a model file on the device and the coordinator."""
    return hashlib.sha256(model).hexdigest()


@dataclass(frozen=True, slots=True)
class _Initializer:
    """A float32 tensor to be written; `fill` writes its values into a buffer."""

    name: str
    shape: tuple[int, ...]
    fill: Callable[[Array], None]


class OnnxWriter:
    """Collects the nodes of a model; the weights are read when the model is written."""

    def __init__(self, graph: Graph, batch: int | str) -> None:
        self._graph = graph
        self._batch = batch
        self._proto = onnx.GraphProto(name="subnet")
        self._initializers: list[_Initializer] = []
        self._constants: set[str] = set()

    def add(self, layer: Layer) -> None:
        """Append the nodes of one layer."""
        output = OUTPUT if layer is self._graph.layers[-1] else layer.name
        match layer:
            case Conv():
                self.conv(layer, output)
            case Linear():
                self.node("Flatten", [layer.source], f"{layer.name}/flat", axis=1)
                self.tensor(f"{layer.name}.weight", layer.weight)
                self.tensor(f"{layer.name}.bias", layer.bias)
                parameters = [f"{layer.name}.weight", f"{layer.name}.bias"]
                self.node("Gemm", [f"{layer.name}/flat", *parameters], output, transB=1)
            case Add():
                total = output if layer.activation == "none" else f"{layer.name}/sum"
                self.node("Add", [layer.left, layer.right], total)
                self.activation(layer.activation, total, output)
            case Scale():
                self.node("Mul", [layer.source, layer.gate], output)
            case GlobalAveragePool():
                self.node("GlobalAveragePool", [layer.source], output)
            case MaxPool():
                window = _window(layer.kernel, layer.stride, layer.padding)
                self.node("MaxPool", [layer.source], output, **window)
            case AveragePool():
                window = _window(layer.kernel, layer.stride, 0)
                self.node("AveragePool", [layer.source], output, ceil_mode=int(layer.ceil), **window)

    def conv(self, layer: Conv, output: str) -> None:
        """Append a convolution with its batch norm folded in."""
        weight, bias = f"{layer.name}.weight", f"{layer.name}.bias"
        self._initializers.append(_Initializer(weight, layer.weight.shape, layer.fold_weight))
        self._initializers.append(_Initializer(bias, layer.weight.shape[:1], layer.fold_bias))
        raw = output if layer.activation == "none" else f"{layer.name}/conv"
        self.convolve(layer, [layer.source, weight, bias], raw)
        self.activation(layer.activation, raw, output)

    def convolve(self, layer: Conv, inputs: list[str], output: str) -> None:
        """Append a convolution without its activation."""
        window = _window(layer.weight.shape[-1], layer.stride, layer.padding)
        self.node("Conv", inputs, output, group=layer.groups, **window)

    def activation(self, activation: Activation, source: str, output: str) -> None:
        """Append an activation from `source` to `output`; nothing if there is none."""
        match activation:
            case "none":
                pass
            case "relu":
                self.node("Relu", [source], output)
            case "relu6":
                self.constant("relu6.min", np.float32(0))
                self.constant("relu6.max", np.float32(6))
                self.node("Clip", [source, "relu6.min", "relu6.max"], output)
            case "h_swish":
                self.node("HardSwish", [source], output)
            case "h_sigmoid":
                self.node("HardSigmoid", [source], output, alpha=1 / 6, beta=0.5)

    def node(self, kind: str, inputs: list[str], output: str, **attributes: int | float | list[int]) -> None:
        """Append an ONNX node, named after its output."""
        settings = [_attribute(key, value) for key, value in sorted(attributes.items())]
        self._proto.node.add(op_type=kind, name=output, input=inputs, output=[output], attribute=settings)

    def tensor(self, name: str, array: Array) -> None:
        """Add a weight, which is copied when the model is written."""

        def fill(out: Array) -> None:
            out[...] = array

        self._initializers.append(_Initializer(name, array.shape, fill))

    def constant(self, name: str, value: np.float32) -> None:
        """Add a scalar that nodes may share."""
        if name not in self._constants:
            self._constants.add(name)
            self.tensor(name, np.array(value, np.float32))

    def output(self, name: str, shape: list[int | str]) -> None:
        """Declare a model output."""
        self._proto.output.append(helper.make_tensor_value_info(name, _FLOAT, shape))

    def finish(self) -> bytes:
        """Return the model's bytes."""
        self._proto.input.append(helper.make_tensor_value_info(INPUT, _FLOAT, [self._batch, *self._graph.input_shape]))
        self.output(OUTPUT, [self._batch, self._graph.classes])
        metadata = {} if self._graph.metadata is None else self._graph.metadata.properties()
        head: bytes = onnx.ModelProto(
            ir_version=IR_VERSION,
            producer_name="fleetnas",
            opset_import=[helper.make_opsetid("", OPSET)],
            metadata_props=[onnx.StringStringEntryProto(key=key, value=value) for key, value in metadata.items()],
        ).SerializeToString(deterministic=True)
        structure: bytes = self._proto.SerializeToString(deterministic=True)
        frames = [_frame(item) for item in self._initializers]
        sizes = [4 * math.prod(item.shape) for item in self._initializers]
        body = len(structure) + sum(map(len, frames)) + sum(sizes)
        head = b"".join((head, _GRAPH_TAG, _varint(body), structure))
        # BytesIO returns its own bytes object, so the model is never copied.
        buffer = io.BytesIO(bytes(len(head) + body - len(structure)))
        with buffer.getbuffer() as view:
            view[: len(head)] = head
            offset = len(head)
            for item, frame, size in zip(self._initializers, frames, sizes, strict=True):
                view[offset : offset + len(frame)] = frame
                offset += len(frame)
                data: NDArray[np.float32] = np.frombuffer(view, "<f4", size // 4, offset)
                item.fill(data.reshape(item.shape))
                del data
                offset += size
        return buffer.getvalue()


def _attribute(name: str, value: int | float | list[int]) -> onnx.AttributeProto:
    if isinstance(value, list):
        return onnx.AttributeProto(name=name, type=onnx.AttributeProto.INTS, ints=value)
    if isinstance(value, int):
        return onnx.AttributeProto(name=name, type=onnx.AttributeProto.INT, i=value)
    return onnx.AttributeProto(name=name, type=onnx.AttributeProto.FLOAT, f=value)


def _window(kernel: int, stride: int, padding: int) -> dict[str, list[int]]:
    return {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [padding] * 4}


def _frame(item: _Initializer) -> bytes:
    """Return the bytes before the raw values of an initializer in a serialised GraphProto."""
    tensor: bytes = onnx.TensorProto(dims=item.shape, data_type=_FLOAT, name=item.name).SerializeToString(
        deterministic=True
    )
    size = 4 * math.prod(item.shape)
    inner = tensor + _RAW_DATA_TAG + _varint(size)
    return _INITIALIZER_TAG + _varint(len(inner) + size) + inner


def _varint(value: int) -> bytes:
    """Encode protobuf's variable-length integer."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
