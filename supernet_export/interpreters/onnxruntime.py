"""onnxruntime, imported without its telemetry, and a session for calibrating and evaluating.

Measuring latency has sessions of its own.
"""

from __future__ import annotations

import os
from typing import Any

from fleetnas.fleet_protocol.errors import MissingDependencyError, RuntimeUnavailableError

#: Official builds from 1.29 on make an identifier of this machine and a database in the home folder when they are
#: imported, and send what they are used for to Microsoft. This, read once, keeps all of it from beginning;
#: `disable_telemetry_events()` comes too late for that. Source: microsoft/onnxruntime, pull request 27379.
TELEMETRY_OFF = {"ORT_DISABLE_TELEMETRY": "1"}
#: Session option without which the 8-bit kernels for x86 processors that have no VNNI add pairs of products in 16 bits,
#: where large ones saturate. It changes nothing on other processors.
#: Source: onnxruntime_session_options_config_keys.h, kOrtSessionOptionsAvx2PrecisionMode.
EXACT_INT8 = ("session.x64quantprecision", "1")


def import_onnxruntime() -> Any:
    """The library; `ImportError` where it is not installed. Nothing else of the product imports it."""
    os.environ.update(TELEMETRY_OFF)
    import onnxruntime

    return onnxruntime


def open_session(model: bytes, *, threads: int = 1) -> Any:
    """A session on the processor. `MissingDependencyError` where onnxruntime is not installed."""
    try:
        onnxruntime = import_onnxruntime()
    except ImportError:
        raise MissingDependencyError(
            "running a subnet needs onnxruntime, which is not installed; run: pip install 'fleetnas[coordinator]'"
        ) from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry(*EXACT_INT8)
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own exceptions have no common base
        raise RuntimeUnavailableError(
            f"onnxruntime does not load the model: {' '.join(str(error).split())[:300]}"
        ) from None
