"""The project's wheel, built as a release would be, and what must be in it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from debian_root import EmulationError, say

CHECKOUT = Path(__file__).resolve().parent.parent.parent
PACKAGES = ("device_profiles", "fleet_protocol", "supernet_export", "agent", "coordinator")


def build_wheel(folder: Path) -> Path:
    """Build it below `folder`; `EmulationError` unless it holds every file of the packages and nothing else."""
    shutil.rmtree(folder, ignore_errors=True)
    # A copy: setuptools leaves a `build` folder behind, and takes what it finds in one for the project's.
    source = folder / "source"
    source.mkdir(parents=True)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(CHECKOUT / name, source)
    for name in PACKAGES:
        shutil.copytree(CHECKOUT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    wheels = folder / "wheels"
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--wheel-dir", str(wheels), "."], cwd=source, check=True)
    (wheel,) = wheels.glob("*.whl")
    expected = {
        path.relative_to(source).as_posix()
        for name in PACKAGES
        for path in (source / name).rglob("*")
        if path.is_file()
    }
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    if held != expected:
        raise EmulationError(
            f"the wheel lacks {sorted(expected - held)} and has {sorted(held - expected)} beside the files of the "
            "packages; see [tool.setuptools] in pyproject.toml"
        )
    say(f"wheel: {wheel.name}, {wheel.stat().st_size / 1e6:.1f} MB, {len(held)} files")
    return wheel
