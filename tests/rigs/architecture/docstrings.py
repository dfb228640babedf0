"""Public names without a docstring."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from rigs.architecture.sources import Offence, Source


def undocumented(source: Source) -> Iterator[Offence]:
    """Public names without a docstring."""
    if any(part.startswith("_") and part != "__init__.py" for part in source.path.split("/")):
        return
    if not ast.get_docstring(source.tree):
        yield Offence(source.path, 1, f"{source.module} has no docstring")
    todo: list[tuple[ast.Module | ast.ClassDef | ast.If | ast.Try, str]] = [(source.tree, "")]
    while todo:
        scope, prefix = todo.pop()
        for node in ast.iter_child_nodes(scope):
            if isinstance(node, (ast.If, ast.Try)):
                todo.append((node, prefix))
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                continue
            decorators = {ast.unparse(decorator).rpartition(".")[2] for decorator in node.decorator_list}
            if node.name.startswith("_") or decorators & {"overload", "setter", "deleter"}:
                continue
            if not ast.get_docstring(node):
                yield Offence(source.path, node.lineno, f"{prefix}{node.name} has no docstring")
            if isinstance(node, ast.ClassDef):
                todo.append((node, f"{prefix}{node.name}."))
