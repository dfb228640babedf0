"""An onnxruntime session for calibrating and evaluating; measuring latency has its own."""

from __future__ import annotations

from typing import Any

from fleet_protocol.errors import MissingDependencyError, RuntimeUnavailableError


def open_session(model: bytes, *, threads: int = 1) -> Any:
    """A session on the processor. `MissingDependencyError` where onnxruntime is not installed."""
    try:
        import onnxruntime
    except ImportError:
        raise MissingDependencyError(
            "running a subnet needs onnxruntime, which is not installed; run: pip install 'fleetnas[coordinator]'"
        ) from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own exceptions have no common base
        raise RuntimeUnavailableError(
            f"onnxruntime does not load the model: {' '.join(str(error).split())[:300]}"
        ) from None
