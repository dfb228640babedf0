"""Links, names and examples of the documents are true, and the API pages build."""

from __future__ import annotations

import ast
import builtins
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rigs import waiting

import fleetnas

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
_FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_PYTHON = re.compile(r"^ *```python\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
#: A class, or an attribute of one: in capitals and small letters.
_CLASS = re.compile(r"`([A-Z][A-Za-z0-9]*[a-z][A-Za-z0-9]*(?:\.\w+)*)`")
_DEFINED = re.compile(r"^ *(?:(?:async )?def |class |)(\w+)(?=[(:= ])", re.MULTILINE)
_IMPORTED = re.compile(r"^ *(?:from [\w.]+ )?import (\w.*|\([^)]*\))", re.MULTILINE)
_WORD = re.compile(r"\w+")
_FILE = re.compile(r"`([\w./-]+/[\w.-]+\.(?:py|md|json|toml|sh))`")
#: Classes of other projects, and a protocol, that documents and docstrings name.
_OTHERS = {
    "BatteryManager",
    "CompiledModel",
    "DynamicMBConvLayer",
    "DynamicResNetBottleneckBlock",
    "DynamicSeparableConv2d",
    "EvolutionFinder",
    "IPv6",
    "LinAlgError",
    "OFAResNets",
    "RandomResizedCrop",
    "Resize",
    "ResNetArchEncoder",
}
_MENTIONED = re.compile(r"\b(?:docs|benchmarks)/[\w/-]+\.(?:md|py)\b")


def links(document: Path) -> list[str]:
    return [link for link in _LINK.findall(_FENCED.sub("", document.read_text())) if "://" not in link]


def anchors(document: Path) -> set[str]:
    """As GitHub makes them of headings: lower case, no punctuation, hyphens for spaces."""
    headings = _HEADING.findall(_FENCED.sub("", document.read_text()))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_relative_links_lead_to_a_file_and_a_heading(document: Path) -> None:
    broken = []
    for link in links(document):
        name, _, anchor = link.partition("#")
        target = (document.parent / name).resolve() if name else document
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


def test_every_document_is_linked_from_another() -> None:
    linked = {
        (document.parent / link.partition("#")[0]).resolve() for document in DOCUMENTS for link in links(document)
    }
    assert {path for path in DOCUMENTS if path.parent != ROOT} <= linked


def test_documents_and_benchmarks_that_are_named_exist() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    texts = [path for path in listed.stdout.split() if path.endswith((".md", ".py"))]
    named = {
        (text, name)
        for text in texts
        if (ROOT / text).is_file()
        for name in _MENTIONED.findall((ROOT / text).read_text())
    }
    assert not {(text, name) for text, name in named if not (ROOT / name).is_file()}


def tracked(*suffixes: str) -> list[Path]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.split("\n") if name.endswith(suffixes) and (ROOT / name).is_file()]


def test_classes_that_documents_and_comments_name_exist() -> None:
    sources = {path: path.read_text() for path in tracked(".py")}
    known = {name for text in sources.values() for name in _DEFINED.findall(text)}
    known |= {name for text in sources.values() for names in _IMPORTED.findall(text) for name in _WORD.findall(names)}
    known |= {*dir(builtins), *_OTHERS}
    texts = {path: _FENCED.sub("", path.read_text()) for path in DOCUMENTS} | sources
    wrong = {
        (path.relative_to(ROOT).as_posix(), name)
        for path, text in texts.items()
        if ROOT / "tests" not in path.parents
        for name in _CLASS.findall(text)
        if not known.issuperset(name.split("."))
    }
    assert not wrong


def test_files_that_documents_name_exist() -> None:
    names = {path.relative_to(ROOT).as_posix() for path in tracked("")}
    wrong = {
        (path.relative_to(ROOT).as_posix(), name)
        for path in DOCUMENTS
        for name in _FILE.findall(_FENCED.sub("", path.read_text()))
        if not any(f"/{known}".endswith(f"/{name}") for known in names)
        and not name.startswith(("/", "~", "results/", "found/"))
    }
    assert not wrong


def test_examples_import_the_public_face_alone() -> None:
    blocks = [(path, block) for path in DOCUMENTS for block in _PYTHON.findall(path.read_text())]
    assert blocks
    assert not [path for path, block in blocks if re.search(r"fleetnas\.\w+ import|import fleetnas\.", block)]
    for _, block in blocks:
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "fleetnas":
                assert node.attr in fleetnas.__all__


def test_the_api_pages_build_without_a_warning(tmp_path: Path) -> None:
    run = waiting.run([sys.executable, str(ROOT / "docs" / "api_pages.py"), str(tmp_path)], cwd=ROOT)
    assert run.returncode == 0, run.stdout + run.stderr
    page = (tmp_path / "fleetnas.html").read_text()
    assert not [name for name in fleetnas.__all__ if f'id="{name}"' not in page]


def test_the_site_builds_without_a_warning_and_has_every_page(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    run = waiting.run(command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"})
    assert run.returncode == 0, run.stdout + run.stderr
    pages = {path.relative_to(ROOT / "docs") for path in (ROOT / "docs").glob("**/*.md")}
    assert not [page for page in pages if not (tmp_path / page).with_name(f"{_site_name(page)}.html").exists()]


def _site_name(page: Path) -> str:
    return "index" if page.name == "README.md" else page.stem


def test_pre_commit_runs_the_checks_of_make_lint() -> None:
    recipe = (ROOT / "Makefile").read_text().split("\nlint:")[1].split("\n\n")[0]
    checks = {line.removesuffix(" .") for line in re.findall(r"\$\(BIN\)/(.+)", recipe)}
    hooks = set(re.findall(r"entry: \.venv/bin/(.+)", (ROOT / ".pre-commit-config.yaml").read_text()))
    assert hooks == checks != set()


def test_the_glossary_defines_each_term_once() -> None:
    rows = re.findall(r"^\| ([^|]+?) \| ", (ROOT / "docs" / "glossary.md").read_text(), re.MULTILINE)
    terms = [term for row in rows if row not in ("term", "---") for term in row.split(", ")]
    assert len(terms) > 100
    assert sorted(terms) == sorted(set(terms))
