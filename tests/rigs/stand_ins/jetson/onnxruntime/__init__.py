"""A stand-in for NVIDIA's onnxruntime-gpu on a Jetson; put its folder first on `PYTHONPATH`.

It is the installed onnxruntime with two more providers, CUDA and TensorRT, which really run on the processor. What it
imitates, of onnxruntime-gpu 1.18 to 1.23 with TensorRT 8.6 and 10:

- a model's engine is built when the session is made, or on the first run where a shape is symbolic (`JETSON_BUILD=run`
  imitates that for every model). The build is counted work: `BUILD_RUNS` inferences;
- with `trt_engine_cache_enable` the engine is written to `trt_engine_cache_path`, under a name that is made of the
  graph's names and of nothing else, and is read from there by the next session;
- a provider that does not load is left out of the session without an error, and a provider that takes no node is not.

`JETSON_LOG` is a file that gets a line per build, cache hit and inference. `JETSON_TROUBLE` names a trouble:
`no tensorrt`, a build without it; `library missing`, TensorRT's shared library does not load; `processor only`, the
provider loads and takes no node; `partial`, two nodes stay with CUDA and one with the processor.
"""

import hashlib
import importlib
import json
import os
import sys
import time
from pathlib import Path

import numpy as np

_HERE = Path(__file__).resolve().parent.parent
BUILD_RUNS = 200
TENSORRT, CUDA, CPU = "TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"
_TROUBLE = os.environ.get("JETSON_TROUBLE", "")
_KNOWN_OPTIONS = {
    "trt_int8_enable",
    "trt_engine_cache_enable",
    "trt_engine_cache_path",
    "trt_timing_cache_enable",
    "trt_timing_cache_path",
}

sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != _HERE]
del sys.modules[__name__]
real = importlib.import_module("onnxruntime")


def log(line: str) -> None:
    with Path(os.environ["JETSON_LOG"]).open("a") as file:
        file.write(f"{line}\n")


class InferenceSession(real.InferenceSession):
    def __init__(self, model, options, providers) -> None:
        super().__init__(model, options, providers=[CPU])
        self._model = model if isinstance(model, bytes) else Path(model).read_bytes()
        self._chain = [name for name, _ in providers]
        self._options = dict(providers)
        if _TROUBLE == "library missing" and TENSORRT in self._chain:
            # onnxruntime writes such a line to standard error and goes on without the provider.
            sys.stderr.write("Failed to load library libonnxruntime_providers_tensorrt.so: libnvinfer.so.10\n")
            self._chain.remove(TENSORRT)
        unknown = set(self._options.get(TENSORRT, {})) - _KNOWN_OPTIONS
        if unknown:
            raise ValueError(f"Invalid TensorRT EP option: {sorted(unknown)[0]}")
        self._built = TENSORRT not in self._chain
        if os.environ.get("JETSON_BUILD") != "run":
            self._build()

    def get_providers(self):
        return [*self._chain, CPU]

    def run(self, names, feeds, *rest):
        self._build()
        if self._chain:
            log(f"infer {self._chain[0]}")
        return super().run(names, feeds, *rest)

    def end_profiling(self):
        """The profile of what the processor did, with the providers that a Jetson would have named."""
        file = Path(super().end_profiling())
        events = json.loads(file.read_text())
        nodes = [event for event in events if event.get("cat") == "Node"]
        for number, event in enumerate(nodes):
            event["args"]["provider"] = self._provider_of(number)
        file.write_text(json.dumps(events))
        return str(file)

    def _provider_of(self, number: int) -> str:
        if not self._chain or _TROUBLE == "processor only":
            return CPU
        if _TROUBLE == "partial" and number < 3:
            return CUDA if number < 2 else CPU
        return self._chain[0]

    def _build(self) -> None:
        if self._built:
            return
        self._built = True
        options = self._options[TENSORRT]
        weights = hashlib.sha256(self._model).hexdigest()
        engine = None
        if options.get("trt_engine_cache_enable") == "1":
            graph = hashlib.sha256(repr([i.name for i in self.get_inputs()]).encode()).hexdigest()[:19]
            engine = Path(options["trt_engine_cache_path"]) / f"{TENSORRT}_TRTKernel_graph_{graph}_0_0_sm87.engine"
            if engine.exists():
                log(f"cached {'fresh' if engine.read_text() == weights else 'STALE'}")
                return
        begin = time.perf_counter()
        feeds = {item.name: np.zeros(item.shape, np.float32) for item in self.get_inputs()}
        for _ in range(BUILD_RUNS):
            super().run(None, feeds)
        log(f"built {1000 * (time.perf_counter() - begin):.3f}")
        if engine is not None:
            engine.write_text(weights)
        if options.get("trt_timing_cache_enable") == "1":
            (Path(options["trt_timing_cache_path"]) / f"{TENSORRT}_cache_sm87.timing").touch()


def get_available_providers():
    return [CUDA, CPU] if _TROUBLE == "no tensorrt" else [TENSORRT, CUDA, CPU]


real.InferenceSession = InferenceSession
real.get_available_providers = get_available_providers
