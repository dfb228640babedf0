"""Open a model file that a coordinator sent, try it, and find out how much memory it takes."""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass
from pathlib import Path

from fleetnas.agent.host.unused_memory import return_unused_memory
from fleetnas.agent.measuring.messages import ModelOrder
from fleetnas.agent.runtimes.base import Runtime
from fleetnas.agent.runtimes.model_file import ModelFile
from fleetnas.agent.runtimes.sent_model import check_model, takes_format
from fleetnas.fleet_protocol.errors import CorruptBundleError, HashMismatchError, UsageError
from fleetnas.fleet_protocol.messages import MeasurementProtocol, RuntimeSetting

#: A few runs that tell about how long one takes.
_TRIAL = MeasurementProtocol(
    warmup_runs=1, warmup_s=0.0, min_runs=3, min_s=0.0, max_s=2.0, blocks=1, half_width_percent=1000.0
)
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
#: Written to `clear_refs`, it sets the peak of the resident memory to its present size (proc(5)).
_RESET_PEAK = "5"
#: Runtimes that have had a session in this process.
_used: set[str] = set()


@dataclass(frozen=True)
class Trial:
    """The first runs of a model."""

    median_ms: float
    memory_bytes: int | None
    """Resident memory that loading and running it added at its peak; None where the system does not tell."""


def open_sent_model(order: ModelOrder) -> ModelFile:
    """Read the file of an order, and check that it is the one that was ordered and that nothing else would run.

    Raises:
        CorruptBundleError: it cannot be read, or has another hash; it is fetched again.
        UsageError: it is no model that is measured here.
    """
    objection = takes_format(order.setting.runtime, order.model.format)
    if objection:
        raise UsageError(f"the model was not loaded: {objection}")
    path = Path(order.model_path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CorruptBundleError(f"the model file cannot be read ({error}); it is fetched again") from error
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != order.model.sha256:
        raise HashMismatchError(
            f"the model file was announced with SHA-256 {order.model.sha256} and has {sha256}; it is fetched again"
        )
    check_model("the model file", content, order.model.format)
    return ModelFile(path, content, (), sha256, len(content), order.model.input_shapes)


def try_model(runtime: Runtime, model: ModelFile, setting: RuntimeSetting) -> Trial:
    """Load a model, run it a few times, and free it."""
    driven = runtime.conditions() is not None  # its memory is that of another device, which this host does not know
    if not driven:
        _load_runtime(runtime, model, setting)
        return_unused_memory()  # what a model before this one left would be taken again, and not be counted
    with contextlib.suppress(OSError):
        _CLEAR.write_text(_RESET_PEAK)
    before = _status_bytes("VmRSS")
    loaded = runtime.load(model.content, setting, model)
    try:
        timing = loaded.time(_TRIAL)
        peak = _status_bytes("VmHWM")
    finally:
        loaded.close()
    known = before is not None and peak is not None and not driven
    return Trial(timing.median_ms, max(0, peak - before) if known else None)  # type: ignore[operator]


def _load_runtime(runtime: Runtime, model: ModelFile, setting: RuntimeSetting) -> None:
    """Have the library take what it keeps for all models, with its first session in this process."""
    runtime.version()
    if setting.runtime not in _used:
        runtime.load(model.content, setting, model).close()
        _used.add(setting.runtime)


def _status_bytes(field: str) -> int | None:
    """Return a size out of this process's status, in bytes; None where the system does not tell."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, rest = line.partition(":")
        words = rest.split()
        if name == field and words and words[0].isdecimal():
            return 1024 * int(words[0])
    return None
