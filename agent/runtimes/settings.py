"""Parse device settings of a command line: `onnxruntime`, `litert,threads=4`, `onnxruntime,provider=cuda`."""

from __future__ import annotations

import re
from importlib import util
from typing import Any

from pydantic import ValidationError

from fleetnas.fleet_protocol.error_text import first_fault
from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.fleet_protocol.installing import install_extra
from fleetnas.fleet_protocol.messages import RuntimeSetting

#: Runtimes that load a model into the measuring child, and those that drive another program.
IN_PROCESS = ("onnxruntime", "litert")
RUNTIMES = (*IN_PROCESS, "adb", "command")
_KEYS = ("provider", "threads", "precision", "graph_optimisation", "affinity")
#: Cores in one range, as many as a setting may name.
MAX_CORES = 256
_CORES = re.compile(r"([0-9]{1,4})(?:-([0-9]{1,4}))?")
_EXAMPLE = "onnxruntime,threads=2,graph_optimisation=basic,affinity=2-3"


class NoRuntimeError(UsageError):
    """No runtime was chosen, and none is installed."""


def parse_setting(text: str) -> RuntimeSetting:
    """Parse a setting, `RUNTIME[,KEY=VALUE...]`; `UsageError` with the allowed values if it is none."""
    runtime, *pairs = (part.strip() for part in text.split(","))
    fields: dict[str, Any] = {"runtime": runtime}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        key = key.replace("-", "_").replace("optimization", "optimisation")
        if not separator or key not in _KEYS:
            raise UsageError(
                f"{pair!r} in setting {text!r} is not one of {', '.join(f'{known}=...' for known in _KEYS)}; "
                f"an example is {_EXAMPLE}"
            )
        fields[key] = _cores(value, text) if key == "affinity" else value
    try:
        return RuntimeSetting.model_validate(fields)
    except ValidationError as error:
        raise UsageError(f"setting {text!r}: {first_fault(error)}; an example is {_EXAMPLE}") from None


def installed_runtime() -> str:
    """Return the installed runtime that is used by default; nothing is imported. `NoRuntimeError` if there is none."""
    for module, runtime in (
        ("onnxruntime", "onnxruntime"),
        ("ai_edge_litert", "litert"),
        ("tflite_runtime", "litert"),
    ):
        if util.find_spec(module) is not None:
            return runtime
    raise NoRuntimeError(
        f"no runtime is installed that could run a model; run: {install_extra('agent')} for onnxruntime, or "
        f"{install_extra('litert')} for LiteRT"
    )


def _cores(text: str, setting: str) -> tuple[int, ...]:
    """Core numbers from `0`, `0-3` or `0+2+4-5`."""
    cores: list[int] = []
    for part in text.split("+"):
        found = _CORES.fullmatch(part)
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, -1)
        if not first <= last < first + MAX_CORES:
            raise UsageError(
                f"affinity {text!r} in setting {setting!r} is not a list of cores such as 0-3 or 0+2+4, of at most "
                f"{MAX_CORES}"
            )
        cores.extend(range(first, last + 1))
    return tuple(dict.fromkeys(cores))
