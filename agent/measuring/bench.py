"""Measure one model file in the killable child, as a task would be measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from fleetnas.agent.measuring.host_lock import default_host_lock_path
from fleetnas.agent.measuring.messages import BenchOrder, FailedReply, MeasuredReply, PhaseReply, Reply, UnreadyReply
from fleetnas.agent.measuring.worker import Worker, child_command, replies_of
from fleetnas.agent.runtimes.input_shapes import Shape
from fleetnas.fleet_protocol.errors import FleetnasError, RuntimeUnavailableError, UsageError
from fleetnas.fleet_protocol.messages import MeasurementProtocol, RuntimeSetting

#: Runtimes that take a file of this name; the first is the default.
_RUNTIMES = {".onnx": ("onnxruntime", "command"), ".tflite": ("litert", "adb")}
#: Runtimes whose own profiler can be reached.
PROFILED = ("onnxruntime",)
#: Beyond the protocol's own longest time: loading a model, building an accelerator's engine.
_SLACK_S = 600.0


def runtime_for(model: Path, chosen: str | None = None) -> str:
    """Return the runtime that measures a file of this name; `UsageError` if none does, or not the `chosen` one."""
    if not model.is_file():
        raise UsageError(f"there is no model file {model}; check its path")
    if model.suffix not in _RUNTIMES:
        raise UsageError(
            f"{model.name} is neither {' nor '.join(_RUNTIMES)}; these are the models that can be measured"
        )
    fitting = _RUNTIMES[model.suffix]
    if chosen is not None and chosen not in fitting:
        raise UsageError(f"runtime {chosen} does not take {model.suffix} files; use --runtime {' or '.join(fitting)}")
    return chosen or fitting[0]


def bench_model(
    model: Path,
    setting: RuntimeSetting,
    protocol: MeasurementProtocol,
    on_phase: Callable[[PhaseReply], None],
    input_shapes: Mapping[str, Shape] = MappingProxyType({}),
    *,
    engine_folder: Path | None = None,
    profile: bool = False,
) -> MeasuredReply:
    """Measure a model file in the killable child, with the host's lock held.

    `input_shapes` are the chosen shapes by input name; the empty name stands for the one input that has open sides.
    Compiled engines are kept in `engine_folder`. With `profile` the layers are timed too. Raises `UsageError` if the
    model or its shapes cannot be used, else `FleetnasError` with the child's reason.
    """
    worker = Worker(child_command(default_host_lock_path(), engine_folder=engine_folder))
    try:
        shapes = dict(input_shapes)
        order = BenchOrder(
            model_path=str(model), setting=setting, protocol=protocol, input_shapes=shapes, profile=profile
        )
        worker.submit(order)
        limit_s = protocol.warmup_s + 2 * protocol.max_s + _SLACK_S
        reply: Reply | None = None
        for reply in replies_of(worker, limit_s):
            if isinstance(reply, PhaseReply):
                on_phase(reply)
        if isinstance(reply, MeasuredReply):
            return reply
        if isinstance(reply, FailedReply):
            raise not_measured(model, reply)
        if isinstance(reply, UnreadyReply):
            raise FleetnasError(f"{model.name} was not measured: {reply.reason}")
        raise RuntimeUnavailableError(f"{model.name} gave no result within {limit_s:g} s; raise --max-time")
    finally:
        worker.kill()


def not_measured(model: Path, reply: FailedReply) -> FleetnasError:
    """Return the error of an order that failed before anything was measured."""
    kind = UsageError if reply.usage else FleetnasError
    return kind(f"{model.name} was not measured: {reply.reason}: {reply.detail}")
