"""Say why an agent cannot do what a run asks of some agents only: it is of an earlier version, or was not told to."""

from __future__ import annotations

from fleetnas.fleet_protocol.messages import LAYERS_MINOR, MODEL_FILES_MINOR, AgentInfo, RuntimeSetting

#: Runtimes whose profilers are read.
_PROFILED = ("onnxruntime",)


def models_objection(info: AgentInfo) -> str:
    """Return why an agent is sent no model file; empty where it takes them."""
    if info.accepts_models:
        return ""
    if info.schema_minor < MODEL_FILES_MINOR:
        return too_old(info, "measure model files", "there, and start it with `fleetnas-agent run --accept-models`")
    return "its agent takes no model files; start it with `fleetnas-agent run --accept-models`"


def layers_objection(info: AgentInfo, setting: RuntimeSetting) -> str:
    """Return why the layers of a model are not timed on a device setting; empty where they are."""
    if setting.runtime not in _PROFILED:
        return f"the profiler of {setting.runtime} cannot be read, only that of {', '.join(_PROFILED)}"
    if info.schema_minor < LAYERS_MINOR:
        return too_old(info, "time layers")
    return ""


def too_old(info: AgentInfo, ability: str, remedy: str = "there") -> str:
    """Return the line about an agent of a version that has not an ability yet."""
    return f"the agent of {info.agent} is too old to {ability}; update fleetnas {remedy}"
