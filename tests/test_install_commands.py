"""What pages say to install is enough for the commands on them."""

from __future__ import annotations

import ast
import re
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name
from rigs.extras import declared_extras

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
_INSTALLED = re.compile(r"pip install ['\"]fleetnas\[([\w,]+)\]")
#: Extras whose commands are `fleetnas ...`, the coordinator's command line.
_OF_THE_COORDINATOR = {"cluster", "digits", "export", "parquet", "postgres", "train"}
#: What the steps of the guide to one's own images run.
_OF_THE_GUIDE = (
    "coordinator/cli/*.py",
    "coordinator/report/*.py",
    "supernet_export/accuracy/*.py",
    "supernet_export/emitters/*.py",
    "supernet_export/evaluation/*.py",
    "supernet_export/interpreters/*.py",
    "supernet_export/training/*.py",
)
#: Imported only for an option that the guide does not take, or in place of another package.
_ELSEWHERE = {"distributed", "tflite_runtime"}


def extras_of(page: Path) -> list[set[str]]:
    return [set(found.split(",")) for found in _INSTALLED.findall(page.read_text())]


@pytest.mark.parametrize("page", [page for page in PAGES if extras_of(page)], ids=lambda page: page.stem)
def test_pages_that_name_a_coordinators_extra_install_the_coordinator(page: Path) -> None:
    for extras in extras_of(page):
        assert "coordinator" in extras or not extras & _OF_THE_COORDINATOR, extras


def imported_by(path: Path) -> set[str]:
    """Top-level names of other projects that a module imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names - set(sys.stdlib_module_names) - {"fleetnas"}


def test_the_guide_installs_what_its_commands_import() -> None:
    (extras,) = extras_of(ROOT / "docs/own-task.md")
    assert extras in extras_of(ROOT / "README.md")
    imported = {name for pattern in _OF_THE_GUIDE for path in ROOT.glob(pattern) for name in imported_by(path)}
    distributions = packages_distributions()
    declared = declared_extras()
    installed = set().union(*(declared[extra] for extra in ["", *extras]))
    missing = {
        name
        for name in imported - _ELSEWHERE
        if not {canonicalize_name(owner) for owner in distributions.get(name, [name])} & installed
    }
    assert not missing
