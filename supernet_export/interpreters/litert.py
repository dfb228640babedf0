"""Import LiteRT's interpreter, formerly TensorFlow Lite's, from the installed package.

Always the classic `Interpreter`: `CompiledModel` of recent versions ends in an illegal instruction on the Cortex-A72.
"""

from __future__ import annotations

import importlib
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import util
from typing import Any

from fleetnas.fleet_protocol.errors import RuntimeUnavailableError
from fleetnas.fleet_protocol.installing import install_extra

#: Modules that hold an `Interpreter`, best first, and the distributions that bring them.
_MODULES = (
    ("ai_edge_litert.interpreter", "ai-edge-litert"),
    ("tflite_runtime.interpreter", "tflite-runtime"),
)
#: Said once per process by native code, into whatever the terminal shows.
_GREETING = b"INFO: Created TensorFlow Lite XNNPACK delegate for CPU."
_stderr_lock = threading.Lock()


def import_litert() -> tuple[Any, str]:
    """Return the module with `Interpreter`, and the name of its distribution.

    `RuntimeUnavailableError` where neither is installed, or the one that is cannot be imported.
    """
    for module, distribution in _MODULES:
        if util.find_spec(module.partition(".")[0]) is None:
            continue
        try:
            return importlib.import_module(module), distribution
        except ImportError as error:
            raise RuntimeUnavailableError(
                f"{distribution} is installed and cannot be imported ({' '.join(str(error).split())[:200]}); "
                f"run: pip install --force-reinstall {distribution}"
            ) from error
    raise RuntimeUnavailableError(
        f"LiteRT is not installed; run: {install_extra('litert')}, on 32-bit Arm: pip install tflite-runtime"
    )


def open_interpreter(model: bytes, *, threads: int = 1, **options: Any) -> Any:
    """Open an interpreter of a TFLite model, with its tensors allocated; `options` are the interpreter's own.

    `RuntimeUnavailableError` where there is none, or where it does not load the model.
    """
    module, distribution = import_litert()
    try:
        interpreter = module.Interpreter(model_content=model, num_threads=threads, **options)
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise RuntimeUnavailableError(
            f"{distribution} does not load the model: {' '.join(str(error).split())[:300]}"
        ) from error
    return interpreter


@contextmanager
def without_greeting() -> Iterator[None]:
    """Suppress the greeting of native code on standard error; other output meanwhile is delayed a moment."""
    with _stderr_lock, ExitStack() as opened:
        try:
            held = opened.enter_context(tempfile.TemporaryFile())
            stderr = os.dup(2)
        except OSError:  # nowhere to hold it, or closed, as in a daemon: then there is nothing to keep clean
            yield
            return
        try:
            os.dup2(held.fileno(), 2)
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            held.seek(0)
            for line in held:
                if line.strip() != _GREETING:
                    os.write(2, line)
