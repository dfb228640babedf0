"""The files of the checkout, and places in them."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = ("device_profiles", "fleet_protocol", "supernet_export", "agent", "coordinator")
FACE = "fleetnas"


@dataclass(frozen=True)
class Offence:
    """One place that a figure counts."""

    file: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.text}"


@dataclass(frozen=True)
class Source:
    """One Python file: its path from the checkout's root, and its text."""

    path: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        """The syntax tree."""
        return ast.parse(self.text, self.path)

    @cached_property
    def module(self) -> str:
        """The import name; only for files of the product."""
        parts = self.path.removesuffix(".py").split("/")
        parts = parts if parts[0] == FACE else [FACE, *parts]
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    @property
    def lines(self) -> int:
        """Physical lines."""
        return self.text.count("\n")

    @property
    def of_product(self) -> bool:
        """Whether a wheel holds it."""
        return self.path.split("/")[0] in (FACE, *PACKAGES)


def listed_files() -> list[str]:
    """All files that git has, or would add, as paths from the root; symbolic links to folders are not followed."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return sorted({name for name in listed.stdout.split("\n") if name and (ROOT / name).is_file()})


def python_sources(files: Sequence[str]) -> list[Source]:
    """The Python files among `files`."""
    return [Source(name, (ROOT / name).read_text()) for name in files if name.endswith(".py")]


def functions(tree: ast.AST) -> Iterator[tuple[ast.FunctionDef | ast.AsyncFunctionDef, ast.ClassDef | None]]:
    """Every function of a tree, with the class that it belongs to."""
    todo: list[tuple[ast.AST, ast.ClassDef | None]] = [(tree, None)]
    while todo:
        node, owner = todo.pop()
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield child, owner
                todo.append((child, None))
            elif isinstance(child, ast.ClassDef):
                todo.append((child, child))
            else:
                todo.append((child, owner))
