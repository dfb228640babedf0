"""Import onnxruntime without its telemetry, and open sessions for calibration and evaluation.

The agent's runtimes make their own sessions for measuring latency.
"""

from __future__ import annotations

import os
from typing import Any

from fleetnas.fleet_protocol.errors import MissingDependencyError, RuntimeUnavailableError
from fleetnas.fleet_protocol.installing import install_package

#: Official builds from 1.29 on make an identifier of this machine and a database in the home folder when they are
#: imported, and report their use to Microsoft. This variable, read once, prevents all of it;
#: `disable_telemetry_events()` comes too late for that. Source: microsoft/onnxruntime, pull request 27379.
TELEMETRY_OFF = {"ORT_DISABLE_TELEMETRY": "1"}
#: Session option without which the 8-bit kernels for x86 processors that have no VNNI add pairs of products in 16 bits,
#: where large ones saturate. It changes nothing on other processors.
#: Source: onnxruntime_session_options_config_keys.h, kOrtSessionOptionsAvx2PrecisionMode.
EXACT_INT8 = ("session.x64quantprecision", "1")


def import_onnxruntime() -> Any:
    """Import the library; `ImportError` if it is not installed. No other module imports it."""
    os.environ.update(TELEMETRY_OFF)
    import onnxruntime

    return onnxruntime


def open_session(model: bytes, *, threads: int = 1) -> Any:
    """Open a session on the processor; `MissingDependencyError` if onnxruntime is not installed.

    Raises `RuntimeUnavailableError` if it does not load the model.
    """
    try:
        onnxruntime = import_onnxruntime()
    except ImportError:
        raise MissingDependencyError(
            f"running a subnet needs onnxruntime, which is not installed; run: {install_package('onnxruntime')}"
        ) from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry(*EXACT_INT8)
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 - onnxruntime's own exceptions have no common base
        raise RuntimeUnavailableError(
            f"onnxruntime does not load the model: {' '.join(str(error).split())[:300]}"
        ) from None
