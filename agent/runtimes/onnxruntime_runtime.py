"""Run models with ONNX Runtime."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fleetnas.agent.runtimes.base import LoadedModel, ProviderFallbackError, Runtime, TensorSpec, random_tensors
from fleetnas.agent.runtimes.engine_cache import EngineCache
from fleetnas.agent.runtimes.input_shapes import DeclaredInput, Shape, choose_shapes, spell
from fleetnas.agent.runtimes.layer_profile import read_layers, run_to_profile
from fleetnas.agent.runtimes.model_file import ModelFile
from fleetnas.agent.runtimes.onnx_placement import describe_placement, read_placement
from fleetnas.fleet_protocol.errors import RuntimeUnavailableError, UsageError
from fleetnas.fleet_protocol.installing import install_extra
from fleetnas.fleet_protocol.layer_times import LayerTime
from fleetnas.fleet_protocol.messages import RuntimeSetting
from fleetnas.supernet_export.interpreters.onnxruntime import EXACT_INT8, import_onnxruntime

#: Our names of execution providers and onnxruntime's.
PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "xnnpack": "XnnpackExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "acl": "ACLExecutionProvider",
    "armnn": "ArmNNExecutionProvider",
    "nnapi": "NnapiExecutionProvider",
    "qnn": "QNNExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "dml": "DmlExecutionProvider",
}

_LEVELS = {
    "all": "ORT_ENABLE_ALL",
    "extended": "ORT_ENABLE_EXTENDED",
    "basic": "ORT_ENABLE_BASIC",
    "disabled": "ORT_DISABLE_ALL",
}
_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
}


class OnnxRuntime(Runtime):
    """Runs models with `onnxruntime`, in the installed build."""

    name: ClassVar[str] = "onnxruntime"

    def __init__(self, engines: EngineCache | None = None) -> None:
        """Keep compiled engines in `engines`, if given."""
        self._engines = engines

    def version(self) -> str:
        """Return the version of what runs the models; `RuntimeUnavailableError` if it is missing."""
        return str(_import().__version__)

    def providers(self) -> tuple[str, ...]:
        """Return the providers that are offered here."""
        available = set(_import().get_available_providers())
        return tuple(short for short, long in PROVIDERS.items() if long in available)

    def load(self, model: bytes, setting: RuntimeSetting, own: ModelFile | None = None) -> LoadedModel:
        """Make a model ready to run; see `Runtime.load` for the errors."""
        ort = _import()
        wanted = self._provider(ort, setting)
        # Weights in files beside the model are found from its path alone.
        source = str(own.path) if own is not None and own.weights else model
        asked = own.input_shapes if own is not None else {}
        if setting.provider == "cpu":
            options, chain = self._options(ort, wanted, model, setting, own)
            loaded = _OnnxModel(self._session(ort, source, options, chain, setting), wanted, asked)
            if own is not None:
                _run_once(loaded)
            return loaded
        with tempfile.TemporaryDirectory(prefix="fleetnas-profile-") as folder:
            options, chain = self._options(ort, wanted, model, setting, own, profile=Path(folder, "profile"))
            session = self._session(ort, source, options, chain, setting)
            return _OnnxModel(session, _settle(session, wanted, setting, asked), asked)

    def profile(self, model: bytes, setting: RuntimeSetting, own: ModelFile | None = None) -> tuple[LayerTime, ...]:
        """Return the time of each layer by onnxruntime's profiler, in a session of its own; raises as `load` does."""
        ort = _import()
        wanted = self._provider(ort, setting)
        source = str(own.path) if own is not None and own.weights else model
        with tempfile.TemporaryDirectory(prefix="fleetnas-profile-") as folder:
            options, chain = self._options(ort, wanted, model, setting, own, profile=Path(folder, "profile"))
            session = self._session(ort, source, options, chain, setting)
            loaded = _OnnxModel(session, wanted, own.input_shapes if own is not None else {})
            run_to_profile(loaded.bind(random_tensors(loaded.inputs)))
            return read_layers(Path(session.end_profiling()))

    def _options(
        self,
        ort: Any,
        wanted: str,
        model: bytes,
        setting: RuntimeSetting,
        own: ModelFile | None,
        *,
        profile: Path | None = None,
    ) -> tuple[Any, list[tuple[str, dict[str, str]]]]:
        """Return the options of a session, and its providers with theirs; its profile's name begins with `profile`."""
        options = ort.SessionOptions()
        if profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile)
        options.intra_op_num_threads = setting.threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, _LEVELS[setting.graph_optimisation])
        options.log_severity_level = 3
        options.add_session_config_entry(*EXACT_INT8)
        chain: list[tuple[str, dict[str, str]]] = [(wanted, self._provider_options(model, setting, own))]
        if setting.provider == "xnnpack":
            # XNNPACK has its own thread pool; onnxruntime's documentation requires one thread beside it, not spinning.
            options.intra_op_num_threads = 1
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if setting.provider == "tensorrt" and PROVIDERS["cuda"] in ort.get_available_providers():
            chain.append((PROVIDERS["cuda"], {}))
        return options, chain

    def _session(
        self,
        ort: Any,
        source: bytes | str,
        options: Any,
        chain: list[tuple[str, dict[str, str]]],
        setting: RuntimeSetting,
    ) -> Any:
        try:
            session = ort.InferenceSession(source, options, providers=chain)
        except MemoryError:
            raise
        except Exception as error:  # onnxruntime's own exceptions have no common base
            raise RuntimeUnavailableError(
                f"onnxruntime {ort.__version__} does not load the model: {_one_line(error)}"
            ) from error
        active, wanted = session.get_providers(), chain[0][0]
        if active[0] != wanted:
            raise _fallback(setting, f"onnxruntime would run on {active[0]} instead", wanted)
        session.disable_fallback()
        return session

    def _provider_options(self, model: bytes, setting: RuntimeSetting, own: ModelFile | None) -> dict[str, str]:
        if setting.provider == "xnnpack":
            return {"intra_op_num_threads": str(setting.threads)}
        if setting.provider != "tensorrt":
            return {}
        found = {"trt_int8_enable": "1"} if setting.precision == "int8" else {}
        sha256 = own.sha256 if own is not None else hashlib.sha256(model).hexdigest()
        folder = self._engines.folder(sha256) if self._engines is not None else None
        if self._engines is not None and folder is not None:
            found |= {"trt_engine_cache_enable": "1", "trt_engine_cache_path": str(folder)}
            found |= {"trt_timing_cache_enable": "1", "trt_timing_cache_path": str(self._engines.timings)}
        return found

    def _provider(self, ort: Any, setting: RuntimeSetting) -> str:
        wanted = PROVIDERS.get(setting.provider)
        if wanted is None or wanted not in ort.get_available_providers():
            raise ProviderFallbackError(
                f"provider {setting.provider!r} is not in this build of onnxruntime {ort.__version__}, which offers "
                f"{', '.join(self.providers())}; install a build that has it, or choose one of these"
            )
        return wanted


def _run_once(model: LoadedModel) -> None:
    """Run once; `UsageError` if an own model does not run on inputs of its shapes."""
    try:
        model.bind(random_tensors(model.inputs))()
    except MemoryError:
        raise
    except Exception as error:  # onnxruntime's own exceptions have no common base
        shapes = ", ".join(f"{name} {spell(shape)}" for name, shape in model.input_shapes.items())
        raise UsageError(
            f"the model does not run on {shapes}: {_one_line(error)}; give other shapes with --input-shape"
        ) from error


def _settle(session: Any, wanted: str, setting: RuntimeSetting, asked: Mapping[str, Shape]) -> str:
    """Run once, so that an accelerator builds its engine now; return the providers that ran the nodes."""
    model = _OnnxModel(session, wanted, asked)
    try:
        model.bind(random_tensors(model.inputs))()
        placement = read_placement(Path(session.end_profiling()))
    except MemoryError:
        raise
    except Exception as error:  # onnxruntime's own exceptions have no common base
        raise RuntimeUnavailableError(f"the first run on {wanted} failed: {_one_line(error)}") from error
    if not placement[wanted]:
        ran = ", ".join(sorted(placement)) or "no provider that onnxruntime names"
        raise _fallback(setting, f"every node of the model ran on {ran}", wanted)
    return describe_placement(wanted, placement)


def _fallback(setting: RuntimeSetting, instead: str, wanted: str) -> ProviderFallbackError:
    return ProviderFallbackError(
        f"provider {setting.provider!r} was chosen and {instead}; "
        f"run `fleetnas-agent doctor` to see why {wanted} does not load"
    )


class _OnnxModel(LoadedModel):
    def __init__(self, session: Any, provider: str, asked: Mapping[str, Shape]) -> None:
        self._session = session
        self._names = [output.name for output in session.get_outputs()]
        self._outputs: list[NDArray[Any]] = []
        self.provider = provider
        inputs = session.get_inputs()
        shapes = choose_shapes([_declared(item) for item in inputs], asked)
        self.inputs = tuple(
            TensorSpec(item.name, shapes[item.name], np.dtype(_DTYPES.get(item.type, np.float32))) for item in inputs
        )

    def bind(self, tensors: Sequence[NDArray[Any]]) -> Callable[[], object]:
        feeds = {spec.name: tensor for spec, tensor in zip(self.inputs, tensors, strict=True)}
        run, names = self._session.run, self._names

        def infer() -> None:
            self._outputs = run(names, feeds)

        return infer

    def outputs(self) -> list[NDArray[Any]]:
        return list(self._outputs)


def _declared(item: Any) -> DeclaredInput:
    """Return an input as the session declares it: a side without a number has a name, or none."""
    sides = tuple(side if isinstance(side, int) and side > 0 else None for side in item.shape)
    return DeclaredInput(item.name, sides)


def _import() -> Any:
    try:
        return import_onnxruntime()
    except ImportError as error:
        raise RuntimeUnavailableError(
            f"onnxruntime cannot be imported ({_one_line(error)}); run: {install_extra('agent')}"
        ) from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
