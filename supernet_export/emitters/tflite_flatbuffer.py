"""A TFLite model in memory, and its flatbuffer.

The flatbuffer's tables are written with the schema bindings of the `tflite` package. The constants are then put
behind them, each straight into its place in the final buffer, so that a model costs no more memory than its own
size; a flatbuffers builder alone would copy every weight twice.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleetnas.fleet_protocol.errors import MissingDependencyError
from fleetnas.fleet_protocol.installing import install_extra

#: Alignment of every constant, in bytes: what the runtimes' vector kernels ask for.
ALIGNMENT = 16

#: Operator: its options table and its version for float32 and for int8 tensors. The versions are the lowest that
#: TensorFlow's `op_version.cc` gives these uses, so that old runtimes take the model too.
_OPERATORS: Mapping[str, tuple[str, int, int]] = {
    "ADD": ("Add", 1, 2),
    "AVERAGE_POOL_2D": ("Pool2D", 1, 2),
    "CONV_2D": ("Conv2D", 1, 3),
    "DEPTHWISE_CONV_2D": ("DepthwiseConv2D", 1, 3),
    "DEQUANTIZE": ("Dequantize", 1, 2),
    "FULLY_CONNECTED": ("FullyConnected", 1, 4),
    "HARD_SWISH": ("HardSwish", 1, 1),
    "MAX_POOL_2D": ("Pool2D", 1, 2),
    "MEAN": ("Reducer", 1, 2),
    "MUL": ("Mul", 1, 2),
    "PAD": ("Pad", 1, 2),
    "PADV2": ("PadV2", 1, 2),
    "QUANTIZE": ("Quantize", 1, 1),
    "RESHAPE": ("Reshape", 1, 1),
}


@dataclass(frozen=True, slots=True)
class Quantisation:
    """Affine quantisation: real = scale * (stored - zero point), one scale per channel of `axis` or one for all."""

    scales: NDArray[np.float32]
    zero_point: int = 0
    axis: int = 0


@dataclass(frozen=True, slots=True)
class Tensor:
    """An activation; or a constant, whose values `fill` writes into an array of this shape and type."""

    name: str
    shape: tuple[int, ...]
    dtype: type[np.float32] | type[np.int8] | type[np.int32] | type[np.uint8]
    quantisation: Quantisation | None = None
    fill: Callable[[NDArray[Any]], None] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True, slots=True)
class Operator:
    """One node; `options` are fields of the operator's options table in the schema."""

    code: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: tuple[tuple[str, int], ...] = ()


@dataclass(slots=True)
class Model:
    """Tensors and operators of the only subgraph, in execution order; tensors are known by their position."""

    tensors: list[Tensor] = field(default_factory=list)
    operators: list[Operator] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    #: Name and content of the model's metadata, where it has some.
    metadata: tuple[str, bytes] | None = None

    def set_input(self, tensor: int) -> None:
        """Make a tensor the model's only input."""
        self.inputs = [tensor]

    def set_output(self, tensor: int, name: str) -> None:
        """Make a tensor the model's only output, under this name."""
        self.tensors[tensor] = replace(self.tensors[tensor], name=name)
        self.outputs = [tensor]

    def set_metadata(self, name: str, content: bytes) -> None:
        """Give the model its only metadata entry."""
        self.metadata = name, content

    def tensor(self, tensor: Tensor) -> int:
        """Add a tensor and return its index."""
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def operator(self, code: str, inputs: Sequence[int], output: int, **options: int) -> int:
        """Add an operator with one output and return the output's index."""
        self.operators.append(Operator(code, tuple(inputs), (output,), tuple(options.items())))
        return output

    def serialise(self, appended: Callable[[int], bytes] = lambda offset: b"") -> bytes:
        """Return the model as a TFLite flatbuffer (schema version 3); equal models give equal bytes.

        `appended` is given the flatbuffer's length and returns what follows it.
        """
        constants = [(tensor, tensor.fill) for tensor in self.tensors if tensor.fill is not None]
        if self.metadata is not None:
            constants.append(_raw(self.metadata[1]))
        header, data_fields = _Tables(self).write(len(constants))
        starts, end = [], len(header)
        for (constant, _), data_field in zip(constants, data_fields, strict=True):
            starts.append(-(-(end + 4) // ALIGNMENT) * ALIGNMENT)  # a vector begins with its length, four bytes
            struct.pack_into("<I", header, data_field, starts[-1] - 4 - data_field)
            end = starts[-1] + constant.nbytes
        tail = appended(end)
        # BytesIO returns its own bytes object, so the model is never copied.
        buffer = io.BytesIO(bytes(end + len(tail)))
        with buffer.getbuffer() as view:
            view[: len(header)] = header
            for (constant, fill), start in zip(constants, starts, strict=True):
                struct.pack_into("<I", view, start - 4, constant.nbytes)
                dtype = np.dtype(constant.dtype).newbyteorder("<")
                data: NDArray[Any] = np.frombuffer(view, dtype, constant.nbytes // dtype.itemsize, start)
                fill(data.reshape(constant.shape))
                del data
            view[end:] = tail
        return buffer.getvalue()


def _raw(content: bytes) -> tuple[Tensor, Callable[[NDArray[Any]], None]]:
    """Return bytes as a constant that no tensor uses."""

    def fill(out: NDArray[Any]) -> None:
        out[...] = np.frombuffer(content, np.uint8)

    return Tensor("", (len(content),), np.uint8), fill


class _Tables:
    """Writes the flatbuffer without the constants' data."""

    def __init__(self, model: Model) -> None:
        try:
            import flatbuffers
            import tflite
        except ImportError as error:
            raise MissingDependencyError(
                f"TFLite models need the package {error.name}; install it with: {install_extra('litert')}"
            ) from None
        self.schema: Any = tflite
        self.builder: Any = flatbuffers.Builder(512 * (len(model.tensors) + len(model.operators)) + 1024)
        self.model = model
        self.shared: dict[Hashable, int] = {}

    def write(self, constants: int) -> tuple[bytearray, list[int]]:
        """Return the tables, and for each constant the position of its data's offset in them."""
        builder, schema, model = self.builder, self.schema, self.model
        placeholder = self.vector((), np.uint8)
        buffers = []
        for index in range(constants + 1):
            schema.BufferStart(builder)
            if index:
                schema.BufferAddData(builder, placeholder)
            buffers.append(schema.BufferEnd(builder))
        codes = list(dict.fromkeys((operator.code, self.version(operator)) for operator in model.operators))
        code_table = self.tables([self.operator_code(*code) for code in codes])
        tensors = self.tensor_table()
        operators = self.tables([self.operator(operator, codes) for operator in model.operators])
        inputs, outputs = self.vector(model.inputs), self.vector(model.outputs)
        name = builder.CreateString("main")
        schema.SubGraphStart(builder)
        schema.SubGraphAddTensors(builder, tensors)
        schema.SubGraphAddInputs(builder, inputs)
        schema.SubGraphAddOutputs(builder, outputs)
        schema.SubGraphAddOperators(builder, operators)
        schema.SubGraphAddName(builder, name)
        subgraphs = self.tables([schema.SubGraphEnd(builder)])
        description = builder.CreateString("fleetnas")
        buffer_table = self.tables(buffers)
        metadata = 0 if model.metadata is None else self.metadata(model.metadata[0], constants)
        schema.ModelStart(builder)
        schema.ModelAddVersion(builder, 3)
        schema.ModelAddOperatorCodes(builder, code_table)
        schema.ModelAddSubgraphs(builder, subgraphs)
        schema.ModelAddDescription(builder, description)
        schema.ModelAddBuffers(builder, buffer_table)
        if metadata:
            schema.ModelAddMetadata(builder, metadata)
        builder.Finish(schema.ModelEnd(builder), b"TFL3")
        header = builder.Output()
        root = schema.Model.GetRootAs(header)
        tables = [root.Buffers(index + 1)._tab for index in range(constants)]  # noqa: SLF001 - no public way
        return header, [table.Pos + table.Offset(4) for table in tables]  # 4: the slot of `data`

    def metadata(self, name: str, buffer: int) -> int:
        """Write the model's list of metadata: one entry, whose content is in a buffer."""
        text = self.builder.CreateString(name)
        self.schema.MetadataStart(self.builder)
        self.schema.MetadataAddName(self.builder, text)
        self.schema.MetadataAddBuffer(self.builder, buffer)
        return self.tables([self.schema.MetadataEnd(self.builder)])

    def version(self, operator: Operator) -> int:
        """Return the operator's version, by the type of its output, or for DEQUANTIZE of its input."""
        _, for_float, for_int8 = _OPERATORS[operator.code]
        index = operator.inputs[0] if operator.code == "DEQUANTIZE" else operator.outputs[0]
        return for_int8 if self.model.tensors[index].dtype is np.int8 else for_float

    def operator_code(self, code: str, version: int) -> int:
        number = getattr(self.schema.BuiltinOperator, code)
        self.schema.OperatorCodeStart(self.builder)
        # Readers from before 2020 know only the deprecated field; all numbers used here fit in it.
        self.schema.OperatorCodeAddDeprecatedBuiltinCode(self.builder, number)
        self.schema.OperatorCodeAddVersion(self.builder, version)
        self.schema.OperatorCodeAddBuiltinCode(self.builder, number)
        return int(self.schema.OperatorCodeEnd(self.builder))

    def tensor_table(self) -> int:
        types = {np.float32: "FLOAT32", np.int8: "INT8", np.int32: "INT32"}
        offsets, buffer = [], 0
        for tensor in self.model.tensors:
            shape = self.vector(tensor.shape)
            name = self.builder.CreateString(tensor.name)
            quantisation = self.quantisation(tensor.quantisation) if tensor.quantisation else 0
            self.schema.TensorStart(self.builder)
            self.schema.TensorAddShape(self.builder, shape)
            self.schema.TensorAddType(self.builder, getattr(self.schema.TensorType, types[tensor.dtype]))
            if tensor.fill is not None:
                buffer += 1
                self.schema.TensorAddBuffer(self.builder, buffer)
            self.schema.TensorAddName(self.builder, name)
            if quantisation:
                self.schema.TensorAddQuantization(self.builder, quantisation)
            offsets.append(self.schema.TensorEnd(self.builder))
        return self.tables(offsets)

    def quantisation(self, values: Quantisation) -> int:
        scales = self.builder.CreateNumpyVector(np.ascontiguousarray(values.scales, "<f4"))
        zeros = self.builder.CreateNumpyVector(np.full(len(values.scales), values.zero_point, "<i8"))
        self.schema.QuantizationParametersStart(self.builder)
        self.schema.QuantizationParametersAddScale(self.builder, scales)
        self.schema.QuantizationParametersAddZeroPoint(self.builder, zeros)
        self.schema.QuantizationParametersAddQuantizedDimension(self.builder, values.axis)
        return int(self.schema.QuantizationParametersEnd(self.builder))

    def operator(self, operator: Operator, codes: list[tuple[str, int]]) -> int:
        kind = _OPERATORS[operator.code][0] + "Options"
        options = self.options(kind, operator.options)
        inputs, outputs = self.vector(operator.inputs), self.vector(operator.outputs)
        self.schema.OperatorStart(self.builder)
        self.schema.OperatorAddOpcodeIndex(self.builder, codes.index((operator.code, self.version(operator))))
        self.schema.OperatorAddInputs(self.builder, inputs)
        self.schema.OperatorAddOutputs(self.builder, outputs)
        self.schema.OperatorAddBuiltinOptionsType(self.builder, getattr(self.schema.BuiltinOptions, kind))
        self.schema.OperatorAddBuiltinOptions(self.builder, options)
        return int(self.schema.OperatorEnd(self.builder))

    def options(self, kind: str, fields: tuple[tuple[str, int], ...]) -> int:
        if (kind, fields) not in self.shared:
            getattr(self.schema, f"{kind}Start")(self.builder)
            for name, value in fields:
                getattr(self.schema, f"{kind}Add{name}")(self.builder, value)
            self.shared[kind, fields] = getattr(self.schema, f"{kind}End")(self.builder)
        return self.shared[kind, fields]

    def vector(self, values: Sequence[int], dtype: type[np.generic] = np.int32) -> int:
        """Write a vector of numbers; equal ones are written once."""
        key = (dtype, tuple(values))
        if key not in self.shared:
            array = np.array(values, np.dtype(dtype).newbyteorder("<"))
            self.shared[key] = self.builder.CreateNumpyVector(array)
        return self.shared[key]

    def tables(self, offsets: Sequence[int]) -> int:
        """Write a vector of tables."""
        self.builder.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            self.builder.PrependUOffsetTRelative(offset)
        return int(self.builder.EndVector())
