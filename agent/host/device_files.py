"""Read small files of the system and the output of small programs; a missing one is empty, never an error."""

from __future__ import annotations

import math
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

from fleetnas.fleet_protocol.child_process import child_environment

RunProgram: TypeAlias = Callable[[list[str]], str]
_PROGRAM_TIMEOUT_S = 5.0


def text(path: Path) -> str:
    """Return a file's content without surrounding white space and zero bytes; empty if it cannot be read."""
    try:
        return path.read_bytes().decode(errors="replace").strip("\0 \n")
    except OSError:
        return ""


def number(path: Path) -> float | None:
    """Return the number in a file; None if it holds none, or one that is not finite."""
    try:
        value = float(text(path))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def run_program(command: list[str]) -> str:
    """Return a program's output; empty if it failed or did not end soon."""
    try:
        done = subprocess.run(
            command,
            env=child_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PROGRAM_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout if done.returncode == 0 else ""


def psutil_call(name: str) -> Any:
    """Call a function of psutil; None without psutil, or if it fails."""
    try:
        import psutil

        return getattr(psutil, name)()
    except Exception:  # noqa: BLE001 - psutil raises what the platform does; a sensor is never an error
        return None
