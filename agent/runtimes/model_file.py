"""Read a model file of the user's own: its weights, its hash and its declared inputs, whichever program runs it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from fleetnas.agent.runtimes.input_shapes import DeclaredInput, Shape
from fleetnas.fleet_protocol.error_text import reason_of
from fleetnas.fleet_protocol.errors import MissingDependencyError, UsageError
from fleetnas.fleet_protocol.installing import install_package

_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class ModelFile:
    """A model as it was read, and the shapes at which it is timed."""

    path: Path
    content: bytes = field(repr=False)
    #: Files beside it that hold weights (ONNX's external data), in the order of their names.
    weights: tuple[Path, ...]
    #: Hash of the file and of those weights, one after the other.
    sha256: str
    size: int
    #: Chosen shapes, as `fleetnas.agent.runtimes.input_shapes.choose_shapes` takes them.
    input_shapes: Mapping[str, Shape]


def open_model(path: Path, input_shapes: Mapping[str, Shape]) -> ModelFile:
    """Read a model file; `UsageError` if it, or a file that it needs, cannot be read."""
    digest = hashlib.sha256()
    try:
        content = path.read_bytes()
        digest.update(content)
        size = len(content)
        weights = _weights(path, content) if path.suffix == ".onnx" else ()
        for file in weights:
            with file.open("rb") as blocks:
                while block := blocks.read(_BLOCK_BYTES):
                    digest.update(block)
                    size += len(block)
    except OSError as error:
        raise UsageError(
            f"the model {error.filename or path} cannot be read: {reason_of(error)}; check its path"
        ) from error
    return ModelFile(path, content, weights, digest.hexdigest(), size, input_shapes)


def onnx_inputs(content: bytes) -> list[DeclaredInput]:
    """Return the inputs that an ONNX model declares; none if it is no ONNX model."""
    model = parse_onnx(content)
    if model is None:
        return []
    constants = {tensor.name for tensor in model.graph.initializer}
    return [
        DeclaredInput(
            item.name,
            tuple(side.dim_value if side.dim_value > 0 else None for side in item.type.tensor_type.shape.dim),
        )
        for item in model.graph.input
        if item.name not in constants
    ]


def tflite_inputs(content: bytes) -> list[DeclaredInput] | None:
    """Return the inputs that a TFLite model declares; None if the `tflite` package, which reads it, is missing."""
    try:
        from tflite.Model import Model
    except ImportError:
        return None
    try:
        graph = Model.GetRootAs(content).Subgraphs(0)
        tensors = [graph.Tensors(graph.Inputs(number)) for number in range(graph.InputsLength())]
    except Exception:  # noqa: BLE001 - the bindings check nothing; the runtime reports a broken model
        return []
    return [DeclaredInput(tensor.Name().decode(errors="replace"), _tflite_sides(tensor)) for tensor in tensors]


def _tflite_sides(tensor: Any) -> tuple[int | None, ...]:
    if tensor.ShapeSignatureLength():
        sides = [tensor.ShapeSignature(axis) for axis in range(tensor.ShapeSignatureLength())]
    else:
        sides = [tensor.Shape(axis) for axis in range(tensor.ShapeLength())]
    return tuple(side if side > 0 else None for side in sides)


def _weights(path: Path, content: bytes) -> tuple[Path, ...]:
    model = parse_onnx(content)
    names = {_location(tensor) for tensor in tensors_of(model)} - {""} if model is not None else set()
    for name in names:
        place = PurePosixPath(name)
        if place.is_absolute() or ".." in place.parts:
            raise UsageError(
                f"{path.name} names {name!r} as the file of its weights, which is not beside it; save the model again "
                "with its weights in the same folder"
            )
        if not (path.parent / name).is_file():
            raise UsageError(
                f"{path.name} keeps its weights in {name}, which is not beside it; put it into {path.parent.absolute()}"
            )
    return tuple(path.parent / name for name in sorted(names))


def parse_onnx(content: bytes) -> Any:
    """Return the `onnx.ModelProto` in a file's content; None if there is none."""
    try:
        import onnx
    except ImportError as error:
        raise MissingDependencyError(
            f"reading ONNX models needs the onnx package ({error}); run: {install_package('onnx')}"
        ) from error
    try:
        return onnx.load_model_from_string(content)
    except Exception:  # noqa: BLE001 - protobuf's; the runtime reports a broken model
        return None


def _location(tensor: Any) -> str:
    """Return the name of the file with a tensor's values; empty if they are in the model."""
    external = 1  # onnx.TensorProto.EXTERNAL
    if tensor.data_location != external:
        return ""
    return next((entry.value for entry in tensor.external_data if entry.key == "location"), "")


def tensors_of(message: Any) -> Iterator[Any]:
    """Yield every tensor inside a protobuf message: initialisers, constants, those of subgraphs and functions."""
    for kind, value in message.ListFields():
        if kind.message_type is None:
            continue
        for item in (value,) if hasattr(value, "ListFields") else value:
            if kind.message_type.name == "TensorProto":
                yield item
            else:
                yield from tensors_of(item)
