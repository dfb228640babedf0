"""Commands that install what is missing: they name packages of the index, never fleetnas, which is not on it.

A person who registers that name there would run code on every machine where a message told to install it.
"""

from __future__ import annotations

import re
import shlex
import sys
from importlib import metadata

_EXTRA = re.compile(r"""\s*(?:and\s+)?extra\s*==\s*['"]([\w.-]+)['"]""")
_NAME = re.compile(r"[A-Za-z0-9._-]+")


def pip_command() -> str:
    """Return the start of a pip command for this environment: the shell's `pip` often belongs to another one."""
    return f"{shlex.quote(sys.executable)} -m pip "


def install_extra(extra: str) -> str:
    """Return the command that installs the packages of an extra of fleetnas into this environment."""
    return f"{pip_command()}install {packages_of(extra)}"


def install_package(name: str) -> str:
    """Return the command that installs one package, in a version that fleetnas works with."""
    for requirement, _ in _requirements():
        if _canonical(requirement) == name:
            return f"{pip_command()}install {shlex.quote(requirement)}"
    return f"{pip_command()}install {name}"


def packages_of(extra: str) -> str:
    """Return the packages of an extra as words of a shell's command line."""
    found = [requirement for requirement, of in _requirements() if of == extra]
    return " ".join(map(shlex.quote, found)) if found else f"--editable '.[{extra}]'  # in the checkout of fleetnas"


def _requirements() -> list[tuple[str, str]]:
    """Return what the installed fleetnas requires, each with its extra; empty for those of every installation."""
    try:
        lines = metadata.requires("fleetnas") or []
    except metadata.PackageNotFoundError:
        return []
    found = []
    for line in lines:
        requirement, _, marker = line.partition(";")
        extra = _EXTRA.search(marker)
        rest = _EXTRA.sub("", marker).strip()
        found.append((f"{requirement.strip()}; {rest}" if rest else requirement.strip(), extra[1] if extra else ""))
    return found


def _canonical(requirement: str) -> str:
    name = _NAME.match(requirement)
    return re.sub(r"[-_.]+", "-", name[0]).lower() if name is not None else ""
