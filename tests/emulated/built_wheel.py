"""The project's wheel, built as a release would be, and what must be in it."""

from __future__ import annotations

import shutil
from pathlib import Path

from debian_root import EmulationError, say
from rigs import distributions


def build_wheel(folder: Path) -> Path:
    """Build it below `folder`; `EmulationError` unless it holds every file of the packages and nothing else."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    wheel = distributions.build(folder).wheel
    expected, held = distributions.expected_files(), distributions.wheel_files(wheel)
    if held != expected:
        raise EmulationError(
            f"the wheel lacks {sorted(expected - held)} and has {sorted(held - expected)} beside the files of the "
            "packages; see [tool.setuptools] in pyproject.toml"
        )
    say(f"wheel: {wheel.name}, {wheel.stat().st_size / 1e6:.1f} MB, {len(held)} files")
    return wheel
