"""What the doctor says of systems that this machine is not."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from fleetnas.agent.cli.doctor.installing import install_commands, no_wheel_reason
from fleetnas.device_profiles.catalogue import load_catalogue

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.parametrize(
    ("library", "version", "bits", "python", "reason"),
    [
        ("glibc", "2.36", 64, (3, 11), ""),
        ("glibc", "2.27", 64, (3, 10), ""),
        ("glibc", "2.9", 64, (3, 10), "glibc 2.27"),
        ("glibc", "2.36", 32, (3, 11), ""),
        ("glibc", "2.31", 32, (3, 10), "glibc 2.34"),
        ("glibc", "2.41", 32, (3, 13), "3.11"),
        ("", "", 64, (3, 12), "another C library"),
    ],
)
def test_why_no_wheel_fits(library: str, version: str, bits: int, python: tuple[int, int], reason: str) -> None:
    said = no_wheel_reason(library, version, bits, python)
    assert (reason in said) if reason else said == ""


def test_a_32_bit_system_on_a_64_bit_kernel_is_told_the_32_bit_commands() -> None:
    assert "--extras arm32" in install_commands("raspberry_pi_4", 32)
    assert "onnxruntime>=1.17" in install_commands("raspberry_pi_4", 64)
    assert "onnxruntime>=1.17" in install_commands("unknown", 64)


@pytest.mark.parametrize("profile", [*sorted(load_catalogue().devices), "unknown"])
def test_what_it_tells_to_install_goes_where_it_runs_itself(profile: str) -> None:
    said = install_commands(profile, 64)
    assert f"{sys.executable} -m pip install" in said
    assert said.count("pip install") == said.count("-m pip install")
    assert "-m venv" not in said


def test_the_extras_that_are_named_exist() -> None:
    extras = set(re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE))
    for name, device in load_catalogue().devices.items():
        for command in device.install:
            for named in re.findall(r"\{(\w+)\}", command):
                assert named in extras, f"{name}: {command}"
