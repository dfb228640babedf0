"""What only a Jetson tells: its release of Linux for Tegra, and the power mode that caps its clocks."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from agent.device_files import RunProgram, run_program, text

_RELEASE = re.compile(r"R(\d+) \(release\), REVISION: ([\d.]+)")
_MODE = re.compile(r"^NV Power Mode: (\S+)", re.MULTILINE)


def tegra_release(root: Path = Path("/")) -> str | None:
    """Release of Linux for Tegra, such as `36.4.3`; JetPack 6 is release 36. None on other boards."""
    found = _RELEASE.search(text(root / "etc/nv_tegra_release"))
    return f"{found[1]}.{found[2]}" if found else None


def power_mode(run: RunProgram = run_program) -> str | None:
    """Name of the power mode that is set, such as `MAXN` or `15W`; None where nvpmodel is not installed."""
    program = shutil.which("nvpmodel")
    found = _MODE.search(run([program, "-q"])) if program is not None else None
    return found[1][:32] if found else None
