"""What pages say to install is enough for the commands on them."""

from __future__ import annotations

import ast
import re
import shlex
import sys
from importlib import metadata
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from rigs.distributions import tracked_files
from rigs.extras import declared_extras

from fleetnas.fleet_protocol.installing import install_extra, install_package

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
#: An installation of the checkout or of the wheel, with extras.
_INSTALLED = re.compile(r"pip install (?:--constraint \S+ )?['\"](?:\.|\S*\.whl)\[([\w,]+)\]")
#: An installation of the name from an index: fleetnas is on none, and a stranger may register it there.
_FROM_AN_INDEX = re.compile(r"pip3? (?:install|download|wheel)\b(?:[^\n;|&`]*[ \t'\"=]| )fleetnas(?![\w./*-])")
_ALSO_READ = (".py", ".json", ".toml", ".sh", ".md", ".html", ".j2", "Makefile", "Containerfile")
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
_ELSEWHERE = {"click", "distributed", "tflite_runtime"}


def tracked() -> list[Path]:
    return [ROOT / name for name in tracked_files() if name.endswith(_ALSO_READ) and not (ROOT / name).is_symlink()]


def test_nothing_tells_to_install_the_name_from_an_index() -> None:
    """Pages, help texts, messages and data; this test names what it forbids."""
    texts = {path: path.read_text() for path in tracked() if path != Path(__file__)}
    assert len(texts) > 400
    found = {str(path.relative_to(ROOT)): _FROM_AN_INDEX.findall(text) for path, text in texts.items()}
    assert {path: lines for path, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    ("text", "forbidden"),
    [
        ("pip install fleetnas", True),
        ("pip install 'fleetnas[agent]'", True),
        ('/opt/fleetnas/bin/pip install "fleetnas[agent,litert]" psutil', True),
        ("python -m pip install --upgrade onnx fleetnas==1.0", True),
        ("pip download -d x fleetnas", True),
        ('pip install ".[agent]"', False),
        ('/opt/fleetnas/bin/pip install "./fleetnas-0.1.0-py3-none-any.whl[agent]"', False),
        ("~/fleetnas/bin/pip install onnx", False),
        ("pip install dist/fleetnas-*.whl", False),
    ],
)
def test_that_rule_finds_what_it_should(text: str, forbidden: bool) -> None:
    assert (_FROM_AN_INDEX.search(text) is not None) is forbidden


@pytest.mark.parametrize("extra", sorted(set(declared_extras()) - {""}))
def test_the_command_of_an_extra_names_its_packages_and_this_python(extra: str) -> None:
    if extra not in (metadata.metadata("fleetnas").get_all("Provides-Extra") or ()):
        pytest.skip(f"this installation is older than the extra {extra} of pyproject.toml")
    said = install_extra(extra)
    assert said.startswith(f"{sys.executable} -m pip install ")
    words = shlex.split(said)[4:]
    assert {canonicalize_name(Requirement(word).name) for word in words} <= declared_extras()[extra]
    assert words


def test_a_package_comes_in_a_version_that_works() -> None:
    assert shlex.split(install_package("onnxruntime"))[4:] == ["onnxruntime>=1.17"]
    assert shlex.split(install_package("pyyaml"))[4:] == ["PyYAML>=6"]


def extras_of(page: Path) -> list[set[str]]:
    return [set(found.split(",")) for found in _INSTALLED.findall(page.read_text())]


@pytest.mark.parametrize("page", [page for page in PAGES if extras_of(page)], ids=lambda page: page.stem)
def test_pages_that_name_a_coordinators_extra_install_the_coordinator(page: Path) -> None:
    for extras in extras_of(page):
        assert "coordinator" in extras or not extras & _OF_THE_COORDINATOR, extras


def test_the_guide_to_installing_lists_every_extra() -> None:
    listed = re.findall(r"^\| `(\w+)` \| ", (ROOT / "docs/installing.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(set(declared_extras()) - {"", "dev"})


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
