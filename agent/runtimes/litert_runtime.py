"""Run models with LiteRT, formerly TensorFlow Lite: `ai_edge_litert`, else `tflite_runtime`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fleetnas.agent.runtimes.base import LoadedModel, ProviderFallbackError, Runtime, TensorSpec
from fleetnas.agent.runtimes.input_shapes import DeclaredInput, choose_shapes, spell
from fleetnas.agent.runtimes.model_file import ModelFile
from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.fleet_protocol.messages import RuntimeSetting
from fleetnas.supernet_export.interpreters.litert import import_litert, open_interpreter

#: `cpu` is what the library does by itself, which is XNNPACK in every build that has it.
_PROVIDERS = ("cpu", "xnnpack", "builtin")
_DELEGATE = "DELEGATE"


class LiteRt(Runtime):
    """Runs models with the LiteRT interpreter on the processor."""

    name: ClassVar[str] = "litert"

    def version(self) -> str:
        """Return the version of what runs the models; `RuntimeUnavailableError` if it is missing."""
        _, distribution = import_litert()
        return f"{distribution} {metadata.version(distribution)}"

    def providers(self) -> tuple[str, ...]:
        """Return the providers that are offered here."""
        import_litert()
        return _PROVIDERS

    def load(self, model: bytes, setting: RuntimeSetting, own: ModelFile | None = None) -> LoadedModel:
        """Make a model ready to run; see `Runtime.load` for the errors."""
        module, distribution = import_litert()
        if setting.provider not in _PROVIDERS:
            raise ProviderFallbackError(
                f"provider {setting.provider!r} is not one of LiteRT's here, which are {', '.join(_PROVIDERS)}"
            )
        resolvers = module.OpResolverType
        resolver = resolvers.BUILTIN_WITHOUT_DEFAULT_DELEGATES if setting.provider == "builtin" else resolvers.AUTO
        interpreter = open_interpreter(model, threads=setting.threads, experimental_op_resolver_type=resolver)
        if own is not None:
            _resize(interpreter, own)
        delegated = _is_delegated(interpreter)
        if setting.provider == "xnnpack" and delegated is False:
            raise ProviderFallbackError(
                f"provider 'xnnpack' was chosen and {distribution} would run its built-in kernels instead; install "
                "a build with XNNPACK, or choose provider 'cpu' or 'builtin'"
            )
        return _LiteRtModel(interpreter, {True: "XNNPACK", False: "builtin", None: "unknown"}[delegated])


class _LiteRtModel(LoadedModel):
    def __init__(self, interpreter: Any, provider: str) -> None:
        self._interpreter = interpreter
        self._input_details = interpreter.get_input_details()
        self.provider = provider
        self.inputs = tuple(
            TensorSpec(item["name"], tuple(int(side) for side in item["shape"]), np.dtype(item["dtype"]))
            for item in self._input_details
        )

    def bind(self, tensors: Sequence[NDArray[Any]]) -> Callable[[], object]:
        for item, tensor in zip(self._input_details, tensors, strict=True):
            self._interpreter.set_tensor(item["index"], tensor)
        invoke: Callable[[], object] = self._interpreter.invoke
        return invoke

    def outputs(self) -> list[NDArray[Any]]:
        return [self._interpreter.get_tensor(item["index"]) for item in self._interpreter.get_output_details()]


def _resize(interpreter: Any, own: ModelFile) -> None:
    """Resize the inputs of a user's model to the chosen shapes; an open batch axis becomes 1."""
    details = interpreter.get_input_details()
    shapes = choose_shapes([_declared(item) for item in details], own.input_shapes)
    changed = [item for item in details if tuple(int(side) for side in item["shape"]) != shapes[item["name"]]]
    try:
        for item in changed:
            interpreter.resize_tensor_input(item["index"], shapes[item["name"]])
        if changed:
            interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        spelled = ", ".join(f"{name} {spell(shape)}" for name, shape in shapes.items())
        reason = " ".join(str(error).split())[:200]
        raise UsageError(
            f"the model does not run on {spelled}: {reason}; give other shapes with --input-shape"
        ) from error


def _declared(item: Any) -> DeclaredInput:
    signature = item.get("shape_signature")
    sides = signature if signature is not None and len(signature) == len(item["shape"]) else item["shape"]
    return DeclaredInput(item["name"], tuple(int(side) if side > 0 else None for side in sides))


def _is_delegated(interpreter: Any) -> bool | None:
    """Whether a delegate runs operators; None if this build does not report it."""
    try:
        operators = interpreter._get_ops_details()  # noqa: SLF001 - the library has no public way
        return any(str(item["op_name"]).upper() == _DELEGATE for item in operators)
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
