"""`constraints.txt`: one exact version of every package that the tests run with."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from rigs.extras import declared_extras, requirements

ROOT = Path(__file__).resolve().parent.parent
#: Only on systems that the tests do not run on.
_ELSEWHERE = {"tflite-runtime", "tomli"}


def pinned() -> dict[str, Requirement]:
    lines = [line.partition("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    found = [Requirement(line) for line in lines if line]
    assert len({canonicalize_name(one.name) for one in found}) == len(found), "one version of each"
    return {canonicalize_name(one.name): one for one in found}


def test_every_declared_package_and_all_that_these_need_are_pinned() -> None:
    wanted = set().union(*declared_extras().values()) - _ELSEWHERE
    seen: set[str] = set()
    while wanted - seen:
        name = (wanted - seen).pop()
        seen.add(name)
        try:
            lines = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue  # it is pinned all the same, or the assertion below names it
        needed = [Requirement(line) for line in lines]
        wanted |= {
            canonicalize_name(one.name) for one in needed if one.marker is None or one.marker.evaluate({"extra": ""})
        }
    assert seen - set(pinned()) == set()


def test_every_pin_is_exact_and_within_what_is_declared() -> None:
    pins = pinned()
    for name, pin in pins.items():
        assert re.fullmatch(r"==[\w.+!]+", str(pin.specifier)), f"{name} is not pinned to one version"
    for requirement in requirements():
        pin = pins.get(canonicalize_name(requirement.name))
        if pin is not None and requirement.name != "numpy":  # numpy<2 of 32-bit Arm alone
            (version,) = [each.version for each in pin.specifier]
            assert requirement.specifier.contains(version, prereleases=True), f"{pin} is not {requirement}"


def test_the_tests_run_with_the_pinned_versions() -> None:
    other = {}
    for name, pin in pinned().items():
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        if not pin.specifier.contains(version.partition("+")[0], prereleases=True):
            other[name] = f"{version}, pinned {pin.specifier}"
    if other:
        pytest.skip(f"this environment has other versions than constraints.txt, which tests nothing about it: {other}")
