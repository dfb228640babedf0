"""The images of coordinator and agent: built where a builder is at hand, and read everywhere."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from rigs import distributions, waiting
from rigs.extras import declared_extras

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ("agent", "coordinator")


def builder() -> str:
    """A program that builds images here; skips where there is none that works."""
    for program in ("podman", "buildah", "docker"):
        if shutil.which(program) is not None:
            works = subprocess.run([program, "info"], capture_output=True, check=False, timeout=60)
            if works.returncode == 0 and b"Cannot connect" not in works.stderr:
                return program
    pytest.skip("no podman, buildah or docker that works here: the images are not built")


@pytest.mark.parametrize("image", IMAGES)
def test_a_containerfile_installs_the_wheel_with_extras_that_exist(image: str) -> None:
    text = (ROOT / "containers" / image / "Containerfile").read_text()
    (extras,) = re.findall(r"^ARG EXTRAS=(\S+)$", text, re.MULTILINE)
    assert set(extras.split(",")) <= set(declared_extras())
    assert "COPY constraints.txt dist/fleetnas-*.whl" in text
    assert text.index("USER fleetnas") < text.index("ENTRYPOINT")
    assert ("fleetnas-agent" if image == "agent" else "fleetnas") in re.findall(r'ENTRYPOINT \["(.*)"\]', text)


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_is_built_and_its_program_starts(image: str, tmp_path: Path) -> None:
    program = builder()
    distributions.build_wheel(distributions.copy_sources(tmp_path / "context"), tmp_path)
    (tmp_path / "context" / "dist").mkdir(exist_ok=True)
    for wheel in (tmp_path / "wheels").glob("*.whl"):
        shutil.copy(wheel, tmp_path / "context" / "dist")
    tag = f"fleetnas-{image}-test"
    build = [
        program,
        "bud" if program == "buildah" else "build",
        "-f",
        f"containers/{image}/Containerfile",
        "-t",
        tag,
        ".",
    ]
    built = waiting.run(build, cwd=tmp_path / "context")
    if built.returncode and re.search("no such host|dial tcp|timeout|pinging container registry", built.stderr):
        pytest.skip(f"the base image cannot be fetched here: {built.stderr.strip()[-200:]}")
    assert built.returncode == 0, built.stderr[-2000:]
    if program == "buildah":
        return
    try:
        said = waiting.run([program, "run", "--rm", tag, "--version"])
        assert (said.returncode, "0.1.0" in said.stdout) == (0, True), said.stderr
    finally:
        waiting.run([program, "rmi", "--force", tag])
