"""Make runtimes by their names."""

from __future__ import annotations

from pathlib import Path

from fleetnas.agent.runtimes.base import Runtime
from fleetnas.agent.runtimes.settings import RUNTIMES
from fleetnas.fleet_protocol.errors import RuntimeUnavailableError


def make_runtime(name: str, engine_folder: Path | None = None) -> Runtime:
    """Make a runtime; its library is loaded on first use. Compiled engines are kept in `engine_folder`.

    Raises `RuntimeUnavailableError` for an unknown name.
    """
    if name == "onnxruntime":
        from fleetnas.agent.runtimes.engine_cache import EngineCache
        from fleetnas.agent.runtimes.onnxruntime_runtime import OnnxRuntime

        return OnnxRuntime(EngineCache(engine_folder) if engine_folder is not None else None)
    if name == "litert":
        from fleetnas.agent.runtimes.litert_runtime import LiteRt

        return LiteRt()
    if name == "adb":
        from fleetnas.agent.runtimes.adb_runtime import AdbRuntime

        return AdbRuntime()
    if name == "command":
        from fleetnas.agent.runtimes.command_runtime import CommandRuntime

        return CommandRuntime()
    raise RuntimeUnavailableError(f"runtime {name!r} is not known to this agent; it has {', '.join(RUNTIMES)}")
