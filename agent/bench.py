"""`fleetnas-agent bench`: measure one model file as a task would be measured."""

from __future__ import annotations

from pathlib import Path

from agent.child_messages import BenchOrder, FailedReply, MeasuredReply, PhaseReply
from agent.host_lock import default_host_lock_path
from agent.state_folder import default_state_folder, engines_below
from agent.worker import Worker, child_command
from fleet_protocol.errors import FleetnasError, RuntimeUnavailableError, UsageError
from fleet_protocol.messages import MeasurementProtocol, RuntimeSetting

_RUNTIMES = {".onnx": "onnxruntime", ".tflite": "litert"}
#: Beyond the protocol's own longest time: loading a model, building an accelerator's engine.
_SLACK_S = 600.0


def runtime_for(model: Path) -> str:
    """The runtime that takes a file of this name; `UsageError` where none does."""
    if not model.is_file():
        raise UsageError(f"there is no model file {model}; check its path")
    if model.suffix not in _RUNTIMES:
        raise UsageError(
            f"{model.name} is neither {' nor '.join(_RUNTIMES)}; these are the models that can be measured"
        )
    return _RUNTIMES[model.suffix]


def bench_model(model: Path, setting: RuntimeSetting, protocol: MeasurementProtocol) -> MeasuredReply:
    """The measurement of a model file, in the killable child, with the host's lock held."""
    worker = Worker(child_command(default_host_lock_path(), engine_folder=engines_below(default_state_folder())))
    try:
        worker.submit(BenchOrder(model_path=str(model), setting=setting, protocol=protocol))
        limit_s = protocol.warmup_s + 2 * protocol.max_s + _SLACK_S
        while isinstance(reply := worker.poll(limit_s), PhaseReply):
            continue
        if isinstance(reply, MeasuredReply):
            return reply
        if isinstance(reply, FailedReply):
            raise FleetnasError(f"{model.name} was not measured: {reply.reason}: {reply.detail}")
        raise RuntimeUnavailableError(f"{model.name} gave no result within {limit_s:g} s; raise --max-time")
    finally:
        worker.kill()
