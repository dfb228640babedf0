"""The project's wheel and sdist, built from the files that git has or would add, and what is in them."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent.parent
PACKAGES = ("device_profiles", "fleet_protocol", "supernet_export", "agent", "coordinator")

#: setuptools' own hook: it asks for no `build` package, and isolation would ask for a network.
_SDIST = "import sys; from setuptools import build_meta; print(build_meta.build_sdist(sys.argv[1]))"


@dataclass(frozen=True)
class Distributions:
    """The paths of a wheel and of the sdist of the same sources."""

    wheel: Path
    sdist: Path


def tracked_files(root: Path = CHECKOUT) -> list[str]:
    """Files and symbolic links that git has, or would add, as paths from `root`."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    return sorted({name for name in listed.stdout.split("\n") if (root / name).is_symlink() or (root / name).is_file()})


def copy_sources(folder: Path) -> Path:
    """Copy `tracked_files` into `folder`, links as links: setuptools leaves files behind where it builds."""
    for name in tracked_files():
        source, copy = CHECKOUT / name, folder / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink():
            copy.symlink_to(source.readlink())
        else:
            copy.write_bytes(source.read_bytes())
            copy.chmod(source.stat().st_mode)
    return folder


def build_wheel(source: Path, folder: Path) -> Path:
    """Build the wheel of an unpacked source tree below `folder`, with the setuptools at hand, without a network."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    # A folder of its own: an emulated board gets it whole.
    wheels = folder / "wheels"
    subprocess.run([*command, "--wheel-dir", str(wheels), str(source)], check=True)
    (wheel,) = wheels.glob("*.whl")
    return wheel


def build(folder: Path) -> Distributions:
    """Build the sdist of this checkout, and the wheel of what the sdist holds, as an index would get them."""
    copy = copy_sources(folder / "checkout")
    subprocess.run([sys.executable, "-c", _SDIST, str(folder)], cwd=copy, check=True, stdout=subprocess.DEVNULL)
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="tar")
    (unpacked,) = (folder / "unpacked").iterdir()
    return Distributions(build_wheel(unpacked, folder), sdist)


def expected_files(root: Path = CHECKOUT) -> set[str]:
    """The files that a wheel must hold, by their import path: every tracked file of the packages and of the face."""
    tracked = [name for name in tracked_files(root) if not (root / name).is_symlink()]
    return {name for name in tracked if name.startswith("fleetnas/")} | {
        f"fleetnas/{name}" for name in tracked if name.split("/")[0] in PACKAGES
    }


def wheel_files(wheel: Path) -> set[str]:
    """The files of a wheel, without its metadata."""
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def sdist_files(sdist: Path) -> set[str]:
    """The files and links of an sdist, without its top folder."""
    with tarfile.open(sdist) as archive:
        return {member.name.partition("/")[2] for member in archive.getmembers() if not member.isdir()}
