"""Statuses that are defined more than once."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence

from rigs.architecture.sources import Offence, Source


def _strings(nodes: Sequence[ast.expr]) -> frozenset[str]:
    return frozenset(node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str))


def definitions_of_values(source: Source) -> Iterator[tuple[frozenset[str], str, int]]:
    """Each `Literal` and each enum of two or more strings: its values, its file and its line."""
    for node in ast.walk(source.tree):
        values: frozenset[str] = frozenset()
        if isinstance(node, ast.Subscript) and ast.unparse(node.value).rpartition(".")[2] == "Literal":
            values = _strings(node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice])
        elif isinstance(node, ast.ClassDef) and any("Enum" in ast.unparse(base) for base in node.bases):
            values = _strings([part.value for part in node.body if isinstance(part, ast.Assign)])
        if len(values) > 1 and isinstance(node, (ast.Subscript, ast.ClassDef)):
            yield values, source.path, node.lineno


def repeated_statuses(sources: Sequence[Source]) -> Iterator[Offence]:
    """Definitions whose values are among those of another one, or that share three with it; the later one counts."""
    found = [one for source in sources if "/migrations/" not in source.path for one in definitions_of_values(source)]
    for place, (values, file, line) in enumerate(found):
        for others, other_file, other_line in found[:place]:
            if values <= others or others <= values or len(values & others) > 2:
                shared = ", ".join(sorted(values & others))
                yield Offence(file, line, f"{shared}: also defined at {other_file}:{other_line}")
                break
