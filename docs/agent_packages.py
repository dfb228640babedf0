"""What the agent pulls in and how large it is, as the table of docs/agent.md: `docs/agent_packages.py WHEEL`.

Installs the wheel with its extras for 64-bit x86 and Arm into temporary folders, which works on any machine because pip
only unpacks wheels.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from importlib.metadata import Distribution, distributions
from pathlib import Path

PYTHON = "3.11"
MACHINES = {"x86_64": "x86-64", "aarch64": "Arm64"}
EXTRAS = ("agent", "agent,litert")
#: glibc versions that a current Debian, Ubuntu or Raspberry Pi OS takes wheels for.
GLIBC = ("2_28", "2_27", "2_26", "2_24", "2_17")


def unpack(wheel: Path, extras: str, machine: str, folder: Path) -> dict[str, Distribution]:
    """Everything that pip would install, by name."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--only-binary=:all:"]
    platforms = [f"--platform=manylinux_{version}_{machine}" for version in GLIBC]
    target = [f"--python-version={PYTHON}", *platforms, f"--platform=manylinux2014_{machine}", f"--target={folder}"]
    subprocess.run([*pip, *target, f"{wheel}[{extras}]"], check=True)
    return {found.metadata["Name"]: found for found in distributions(path=[str(folder)])}


def megabytes(distribution: Distribution) -> float:
    """Size of its files."""
    paths = [Path(str(file.locate())) for file in distribution.files or ()]
    return sum(path.stat().st_size for path in paths if path.is_file()) / 1e6


def main() -> None:
    wheel = Path(sys.argv[1]).resolve()
    found: dict[tuple[str, str], dict[str, Distribution]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for extras in EXTRAS:
            for machine in MACHINES:
                found[extras, machine] = unpack(wheel, extras, machine, Path(temporary) / f"{extras}-{machine}")
        sizes = {
            (machine, name): megabytes(held)
            for machine in MACHINES
            for name, held in found[EXTRAS[-1], machine].items()
        }
        light = set(found[EXTRAS[0], "x86_64"])
        names = sorted(found[EXTRAS[-1], "x86_64"], key=lambda name: (name not in light, -sizes["x86_64", name]))
        print(f"| package | version | {' | '.join(f'MB on {label}' for label in MACHINES.values())} | extra |")
        print("|---|---|---|---|---|")
        for name in names:
            columns = " | ".join(f"{sizes.get((machine, name), 0.0):.1f}" for machine in MACHINES)
            version = found[EXTRAS[-1], "x86_64"][name].version
            print(f"| {name} | {version} | {columns} | {'agent' if name in light else 'litert'} |")
        for extras in EXTRAS:
            total = [sum(sizes[machine, name] for name in found[extras, machine]) for machine in MACHINES]
            noun = "extras" if "," in extras else "extra"
            print(f"| **{noun} `{extras}`** | | {' | '.join(f'**{size:.0f}**' for size in total)} | |")


if __name__ == "__main__":
    main()
