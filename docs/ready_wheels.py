"""Which Pythons have ready wheels of everything, as the table of docs/installing.md: `docs/ready_wheels.py`.

Asks pip what it would install, for each Python and each machine, from wheels alone. Nothing is installed; it takes some
minutes, and the index that pip is set to.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from rigs.extras import declared_requirements

PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
MACHINES = {"x86_64": "x86-64", "aarch64": "Arm64"}
#: What an agent, a coordinator and a trainer install; arm32 has a test of its own (`make emulated-armhf`).
EXTRAS = {
    "agent": ("", "agent", "secure"),
    "agent with LiteRT": ("", "agent", "litert", "secure"),
    "coordinator": ("", "agent", "litert", "coordinator", "postgres", "parquet", "secure", "digits", "cluster"),
}
#: glibc versions that a current Debian, Ubuntu or Raspberry Pi OS takes wheels for.
GLIBC = ("2_34", "2_31", "2_28", "2_27", "2_26", "2_24", "2_17")


def missing(requirements: list[str], python: str, machine: str) -> str:
    """Return the package that has no wheel for this Python and machine; empty where all have."""
    pip = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--ignore-installed", "--only-binary=:all:"]
    platforms = [f"--platform=manylinux_{version}_{machine}" for version in GLIBC]
    with tempfile.TemporaryDirectory() as folder:
        target = [f"--python-version={python}", *platforms, f"--platform=manylinux2014_{machine}", f"--target={folder}"]
        run = subprocess.run([*pip, *target, *requirements], capture_output=True, text=True, check=False)
    if run.returncode == 0:
        return ""
    found = re.search(r"No matching distribution found for (\S+)", run.stderr)
    return found[1] if found else run.stderr.strip().splitlines()[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--python", action="append", help=f"such as 3.14; may be repeated (default: {', '.join(PYTHONS)})"
    )
    pythons = parser.parse_args().python or list(PYTHONS)
    declared = declared_requirements()
    print(f"| | {' | '.join(pythons)} |\n|---|{'---|' * len(pythons)}")
    for what, extras in EXTRAS.items():
        # pip takes environment markers from this Python here: those that name another version are left to that one.
        wanted = [str(one) for extra in extras for one in declared[extra] if one.marker is None]
        for machine, name in MACHINES.items():
            cells = [missing(wanted, python, machine) or "yes" for python in pythons]
            print(f"| {what}, {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
