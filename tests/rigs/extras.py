"""What pyproject.toml asks for, read from the file: the metadata of an installation may be older."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

_PROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"
_LIST = re.compile(r"^([\w-]+) = (\[.*?\])$", re.MULTILINE | re.DOTALL)


def declared_extras() -> dict[str, set[str]]:
    """Return the names of the packages of each extra; those of every installation are under an empty name."""
    return {
        extra: {canonicalize_name(requirement.name) for requirement in found}
        for extra, found in declared_requirements().items()
    }


def requirements() -> list[Requirement]:
    """Return every requirement, of all extras."""
    return [requirement for found in declared_requirements().values() for requirement in found]


def declared_requirements() -> dict[str, list[Requirement]]:
    """Return the requirements of each extra; those of every installation are under an empty name."""
    _, _, project = _PROJECT.read_text().partition("[project]\n")
    general, _, rest = project.partition("[project.optional-dependencies]\n")
    optional = rest.partition("\n[")[0]
    found = {"": dict(_LIST.findall(general))["dependencies"], **dict(_LIST.findall(optional))}
    return {extra: [Requirement(line) for line in ast.literal_eval(lines)] for extra, lines in found.items()}
