"""Check a model file that came from elsewhere before a runtime loads it.

A runtime's own code must be all that runs: no custom operators, and no file but this one is read. The parsers of the
runtimes still see the file, inside the measuring child; `docs/security.md` says what that means.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fleetnas.agent.runtimes.input_shapes import DeclaredInput
from fleetnas.agent.runtimes.model_file import onnx_inputs, parse_onnx, tensors_of
from fleetnas.agent.runtimes.tflite_tables import BrokenTableError, read_tflite
from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.fleet_protocol.messages import RuntimeName
from fleetnas.fleet_protocol.orders import MAX_MODEL_BYTES, ModelFormat

#: Runtimes that take a format. A user's own program (runtime `command`) is given no file that came from elsewhere.
RUNTIMES_OF: dict[ModelFormat, tuple[RuntimeName, ...]] = {"onnx": ("onnxruntime",), "tflite": ("litert", "adb")}
#: Operator sets of the ONNX standard; all others are libraries of custom operators.
ONNX_DOMAINS = ("", "ai.onnx", "ai.onnx.ml")
_TFLITE_MARK = b"TFL3"
#: The smallest element type of ONNX has 4 bits.
_ELEMENTS_PER_BYTE = 2


def format_of(path: Path) -> ModelFormat:
    """Return the format that a file's suffix names; `UsageError` if it is neither."""
    suffix = path.suffix.lower().removeprefix(".")
    for known in RUNTIMES_OF:
        if suffix == known:
            return known
    raise UsageError(
        f"{path.name or path} is neither .onnx nor .tflite; these are the model files that can be measured"
    )


def takes_format(runtime: RuntimeName, form: ModelFormat) -> str:
    """Return why a runtime does not measure files of a format; empty if it does."""
    fitting = RUNTIMES_OF[form]
    verb = "does" if len(fitting) == 1 else "do"
    return "" if runtime in fitting else f"runtime {runtime} takes no .{form} files ({' and '.join(fitting)} {verb})"


def check_model(name: str, content: bytes, form: ModelFormat) -> list[DeclaredInput]:
    """Check the content of a model file, and return the inputs that it declares.

    Raises:
        UsageError: it is larger than any that is sent, broken, of the other format, keeps weights elsewhere, or needs
            custom operators. The message begins with `name`.
    """
    if len(content) > MAX_MODEL_BYTES:
        raise UsageError(
            f"{name} has {len(content) / 1e6:,.0f} MB, and agents are sent model files of at most "
            f"{MAX_MODEL_BYTES / 1e6:,.0f} MB; make it smaller, or measure it with `fleetnas-agent bench` on the device"
        )
    is_tflite = content[4:8] == _TFLITE_MARK
    if is_tflite != (form == "tflite"):
        found = "a TFLite model" if is_tflite else "no TFLite model"
        raise UsageError(f"{name} is called .{form} and is {found}; give the file its own suffix, or another file")
    return _check_tflite(name, content) if is_tflite else _check_onnx(name, content)


def _check_onnx(name: str, content: bytes) -> list[DeclaredInput]:
    model = parse_onnx(content)
    if model is None or not model.graph.node or not model.opset_import:
        raise UsageError(f"{name} is no ONNX model, or is truncated; export it again")
    for tensor in tensors_of(model):
        if tensor.external_data or tensor.data_location:
            raise UsageError(
                f"{name} keeps weights in another file (tensor {tensor.name[:60]!r}); save it with all weights inside"
            )
        claimed = math.prod(tensor.dims)
        if min(tensor.dims, default=0) < 0 or claimed > _ELEMENTS_PER_BYTE * tensor.ByteSize():
            raise UsageError(
                f"{name} says that tensor {tensor.name[:60]!r} has {claimed:,} elements, and holds "
                f"{tensor.ByteSize():,} bytes of it; export it again"
            )
    own = {(function.domain, function.name) for function in model.functions}
    bodies = [model.graph.node, *(function.node for function in model.functions)]
    for node in (node for body in bodies for node in _nodes(body)):
        if node.domain not in ONNX_DOMAINS and (node.domain, node.op_type) not in own:
            raise UsageError(
                f"{name} needs operator {node.op_type[:60]} of {node.domain[:60]}, which is not in the ONNX standard; "
                "export it without custom operators"
            )
    return onnx_inputs(content)


def _nodes(body: Any) -> Iterator[Any]:
    """Yield nodes, those of subgraphs included."""
    for node in body:
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _nodes(graph.node)


def _check_tflite(name: str, content: bytes) -> list[DeclaredInput]:
    try:
        model = read_tflite(content)
    except BrokenTableError as error:
        raise UsageError(f"{name} is a TFLite model that is truncated or damaged ({error}); convert it again") from None
    if model.custom_operators:
        raise UsageError(
            f"{name} needs custom operator {model.custom_operators[0]}, which no runtime here has; convert it with "
            "TFLite's own operators alone"
        )
    if model.has_outside_weights:
        raise UsageError(f"{name} keeps weights outside of its tables; convert it with all weights inside")
    return [DeclaredInput(each.name, each.sides) for each in model.inputs]
