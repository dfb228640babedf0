"""Read a Jetson's release of Linux for Tegra, and the power mode that caps its clocks."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from fleetnas.agent.host.device_files import RunProgram, run_program, text

_RELEASE = re.compile(r"R(\d+) \(release\), REVISION: ([\d.]+)")
#: A mode in `/etc/nvpmodel.conf`.
_MODES = re.compile(r"^\s*<\s*POWER_MODEL\s+ID=(\d{1,4})\s+NAME=([\w.+-]+)", re.MULTILINE)
_WATTS = re.compile(r"(\d+)W")
_CORES = re.compile(r"(\d+)_?CORE")
_MODE = re.compile(r"^NV Power Mode: (\S+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class PowerMode:
    """One of a board's power modes."""

    number: int
    name: str

    @property
    def rank(self) -> tuple[bool, bool, int, int]:
        """Order of speed: without a cap, the newer of two without one, then by watts and by cores."""
        name = self.name.upper().replace("-", "")
        watts, cores = _WATTS.search(name), _CORES.search(name)
        free = name.startswith("MAXN")
        return free, free and "SUPER" in name, int(watts[1]) if watts else 0, int(cores[1]) if cores else 0


def tegra_release(root: Path = Path("/")) -> str | None:
    """Return the release of Linux for Tegra, such as `36.4.3`; JetPack 6 is release 36. None on other boards."""
    found = _RELEASE.search(text(root / "etc/nv_tegra_release"))
    return f"{found[1]}.{found[2]}" if found else None


def highest_power_mode(root: Path = Path("/")) -> PowerMode | None:
    """Return the mode with the highest caps or none, from the board's own table; None if it cannot be read.

    Its number differs between boards and releases: 0 is the highest of an AGX Orin, and 15 W of 25 of an Orin Nano.
    """
    table = text(root / "etc/nvpmodel.conf")
    modes = [PowerMode(int(number), name[:32]) for number, name in _MODES.findall(table)]
    return max(modes, key=lambda mode: mode.rank, default=None)


def power_mode(run: RunProgram = run_program) -> str | None:
    """Return the name of the active power mode, such as `MAXN` or `15W`; None if nvpmodel is not installed."""
    program = shutil.which("nvpmodel")
    found = _MODE.search(run([program, "-q"])) if program is not None else None
    return found[1][:32] if found else None
