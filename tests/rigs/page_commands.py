"""Run the shell commands of a page of the documentation, in their order and as they are written."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

_BLOCK = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)


def command_blocks(page: Path) -> list[str]:
    """Return the fenced `sh` blocks of a page; indented commands are examples that nobody runs."""
    return _BLOCK.findall(page.read_text())


def own_environment(folder: Path, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return an environment in which `fleetnas` is this installation's and keeps all its state below `folder`."""
    places = {
        name: str(folder / ".state" / name.lower()) for name in ("XDG_DATA_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME")
    }
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    return {**os.environ, "PATH": path, **places, **(more or {})}


def run_block(block: str, folder: Path, environment: Mapping[str, str], log: Path) -> None:
    """Run a block in `folder`, its output appended to `log`; `CalledProcessError` where a command fails."""
    with log.open("ab") as output:
        output.write(f"$ {block}".encode())
        output.flush()
        subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block],
            cwd=folder, env=dict(environment), stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=True,
        )  # fmt: skip
