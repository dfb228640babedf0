"""ONNX Runtime."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from agent.runtimes.base import LoadedModel, ProviderFallbackError, Runtime, TensorSpec
from fleet_protocol.errors import RuntimeUnavailableError
from fleet_protocol.messages import RuntimeSetting

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
    """`onnxruntime`, in whichever build is installed."""

    name: ClassVar[str] = "onnxruntime"

    def version(self) -> str:
        return str(_import().__version__)

    def providers(self) -> tuple[str, ...]:
        available = set(_import().get_available_providers())
        return tuple(short for short, long in PROVIDERS.items() if long in available)

    def load(self, model: bytes, setting: RuntimeSetting) -> LoadedModel:
        ort = _import()
        wanted = self._provider(ort, setting)
        options = ort.SessionOptions()
        options.intra_op_num_threads = setting.threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, _LEVELS[setting.graph_optimisation])
        options.log_severity_level = 3
        provider_options: dict[str, str] = {}
        if setting.provider == "xnnpack":
            # XNNPACK has its own thread pool; onnxruntime's documentation asks for one thread beside it, not spinning.
            provider_options["intra_op_num_threads"] = str(setting.threads)
            options.intra_op_num_threads = 1
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        chain = [(wanted, provider_options)]
        if setting.provider == "tensorrt" and PROVIDERS["cuda"] in ort.get_available_providers():
            chain.append((PROVIDERS["cuda"], {}))
        try:
            session = ort.InferenceSession(model, options, providers=chain)
        except MemoryError:
            raise
        except Exception as error:  # onnxruntime's own exceptions have no common base
            raise RuntimeUnavailableError(
                f"onnxruntime {ort.__version__} does not load the model: {_one_line(error)}"
            ) from error
        active = session.get_providers()
        if active[0] != wanted:
            raise ProviderFallbackError(
                f"provider {setting.provider!r} was asked for and onnxruntime would run on {active[0]} instead; "
                f"run `fleetnas-agent doctor` to see why {wanted} does not load"
            )
        session.disable_fallback()
        return _OnnxModel(session, wanted)

    def _provider(self, ort: Any, setting: RuntimeSetting) -> str:
        wanted = PROVIDERS.get(setting.provider)
        if wanted is None or wanted not in ort.get_available_providers():
            raise ProviderFallbackError(
                f"provider {setting.provider!r} is not in this build of onnxruntime {ort.__version__}, which offers "
                f"{', '.join(self.providers())}; install a build that has it, or ask for one of these"
            )
        return wanted


class _OnnxModel(LoadedModel):
    def __init__(self, session: Any, provider: str) -> None:
        self._session = session
        self._names = [output.name for output in session.get_outputs()]
        self._outputs: list[NDArray[Any]] = []
        self.provider = provider
        self.inputs = tuple(
            TensorSpec(
                item.name,
                # A dimension without a number is the batch, or one that a caller may choose: 1.
                tuple(side if isinstance(side, int) and side > 0 else 1 for side in item.shape),
                np.dtype(_DTYPES.get(item.type, np.float32)),
            )
            for item in session.get_inputs()
        )

    def bind(self, tensors: Sequence[NDArray[Any]]) -> Callable[[], object]:
        feeds = {spec.name: tensor for spec, tensor in zip(self.inputs, tensors, strict=True)}
        run, names = self._session.run, self._names

        def infer() -> None:
            self._outputs = run(names, feeds)

        return infer

    def outputs(self) -> list[NDArray[Any]]:
        return list(self._outputs)


def _import() -> Any:
    # The library reads this when it is loaded; without it, recent versions collect usage data.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    try:
        import onnxruntime
    except ImportError as error:
        raise RuntimeUnavailableError(
            f"onnxruntime cannot be imported ({_one_line(error)}); run: pip install 'fleetnas[agent]'"
        ) from error
    return onnxruntime


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
