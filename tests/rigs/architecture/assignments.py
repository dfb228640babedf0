"""Assignments to attributes of objects that the function did not make."""

from __future__ import annotations

import ast
import re
from collections import deque
from collections.abc import Iterator

from rigs.architecture.sources import Offence, Source, functions

#: Attributes of libraries' objects: (path, object and attribute, library).
LIBRARY_ATTRIBUTES = (
    (r"coordinator/store/.*", "connection.isolation_level", "sqlite3, in SQLAlchemy's hook for new connections"),
    (r"coordinator/view/.*", "console.width", "rich"),
    (
        r"fleet_protocol/transports/.*",
        r"\w+.on_(disconnect|connect|message|publish|subscribe)",
        "paho-mqtt's callbacks",
    ),
    (r"supernet_export/output_files.py", r"error.filename2?", "OSError"),
    (r"device_profiles/plain_text.py", "sys", "standard streams"),
)

_LOOK_UPS = ("get", "pop", "popleft", "popitem", "setdefault", "next", "getattr", "min", "max", "vars")


def _makes_an_object(value: ast.expr | None) -> bool:
    if isinstance(value, (ast.Await, ast.NamedExpr)):
        return _makes_an_object(value.value)
    if isinstance(value, ast.IfExp):
        return _makes_an_object(value.body) and _makes_an_object(value.orelse)
    if isinstance(value, ast.BoolOp):
        return _makes_an_object(value.values[-1])
    if not isinstance(value, ast.Call):
        return False
    called = value.func
    name = called.attr if isinstance(called, ast.Attribute) else called.id if isinstance(called, ast.Name) else ""
    return name not in _LOOK_UPS


def _of_library(path: str, text: str) -> bool:
    return any(re.fullmatch(place, path) and re.fullmatch(name, text) for place, name, _ in LIBRARY_ATTRIBUTES)


def _own_statements(scope: ast.AST) -> Iterator[ast.AST]:
    """All nodes of a scope but those of functions and classes inside it."""
    todo = deque(ast.iter_child_nodes(scope))
    while todo:
        node = todo.popleft()
        yield node
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)):
            todo.extendleft(reversed(list(ast.iter_child_nodes(node))))


def foreign_assignments(source: Source) -> Iterator[Offence]:
    """Assignments to attributes of objects that the function did not make."""
    scopes = [source.tree, *(function for function, _ in functions(source.tree))]
    for scope in scopes:
        made = {"self", "cls"}
        for node in _own_statements(scope):
            if isinstance(node, ast.withitem) and node.optional_vars and _makes_an_object(node.context_expr):
                made.add(ast.unparse(node.optional_vars))
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                made.add(node.name)
            for target in _targets(node):
                text = ast.unparse(target.value) if isinstance(target, ast.Attribute) else ""
                if text and text not in made and not _of_library(source.path, ast.unparse(target)):
                    yield Offence(source.path, target.lineno, f"{ast.unparse(target)} is set")
            if isinstance(node, (ast.Assign, ast.AnnAssign, ast.NamedExpr)):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                if _makes_an_object(node.value):
                    made.update(ast.unparse(target) for target in targets)
                else:
                    made.difference_update(ast.unparse(target) for target in targets)
            if (
                isinstance(node, ast.Call)
                and ast.unparse(node.func) == "setattr"
                and node.args
                and ast.unparse(node.args[0]) not in made
                and not _of_library(source.path, ast.unparse(node.args[0]))
            ):
                yield Offence(source.path, node.lineno, f"setattr({ast.unparse(node.args[0])}, ...)")


def _targets(node: ast.AST) -> list[ast.expr]:
    if isinstance(node, (ast.Assign, ast.Delete)):
        targets = list(node.targets)
    elif isinstance(node, (ast.AnnAssign, ast.AugAssign, ast.For, ast.AsyncFor)):
        targets = [node.target]
    elif isinstance(node, ast.withitem) and node.optional_vars:
        targets = [node.optional_vars]
    else:
        return []
    flat: list[ast.expr] = []
    while targets:
        target = targets.pop(0)
        if isinstance(target, (ast.Tuple, ast.List)):
            targets = [*target.elts, *targets]
        else:
            flat.append(target.value if isinstance(target, ast.Starred) else target)
    return flat
