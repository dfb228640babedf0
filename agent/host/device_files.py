"""Reading what a system tells in small files and by small programs: whatever is missing is empty, never an error."""

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
    """The file's content without the white space and zero bytes around it."""
    try:
        return path.read_bytes().decode(errors="replace").strip("\0 \n")
    except OSError:
        return ""


def number(path: Path) -> float | None:
    """The number in a file; None where it holds none, or one that is not finite."""
    try:
        value = float(text(path))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def run_program(command: list[str]) -> str:
    """What a program printed; empty where it failed or did not end soon."""
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
    """What a function of psutil returns; None without psutil."""
    try:
        import psutil

        return getattr(psutil, name)()
    except Exception:  # psutil raises whatever the platform does; a sensor is never an error
        return None
