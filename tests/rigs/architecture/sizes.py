"""Long functions and wide constructors."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from rigs.architecture.sources import Offence, Source, functions

LONGEST_MODULE = 350
LONGEST_FUNCTION = 60
MOST_PARAMETERS = 8


def long_functions(source: Source) -> Iterator[Offence]:
    """Functions of more than `LONGEST_FUNCTION` lines."""
    for function, owner in functions(source.tree):
        length = (function.end_lineno or function.lineno) - function.lineno + 1
        if length > LONGEST_FUNCTION:
            name = f"{owner.name}.{function.name}" if owner else function.name
            yield Offence(source.path, function.lineno, f"{name} has {length} lines")


def _constructs(function: ast.FunctionDef | ast.AsyncFunctionDef, owner: ast.ClassDef | None) -> bool:
    if owner is None:
        return function.name.lstrip("_").startswith(("build_", "make_", "create_", "compose_"))
    if function.name in ("__init__", "__new__"):
        return True
    decorators = {ast.unparse(decorator) for decorator in function.decorator_list}
    returned = ast.unparse(function.returns).strip("'\"") if function.returns else ""
    return "classmethod" in decorators and returned in (owner.name, "Self")


def wide_constructors(source: Source) -> Iterator[Offence]:
    """Constructors with more than `MOST_PARAMETERS` values."""
    for function, owner in functions(source.tree):
        if not _constructs(function, owner):
            continue
        arguments = function.args
        values = [
            *arguments.posonlyargs,
            *arguments.args,
            *(
                argument
                for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
                if default is None
            ),
        ]
        count = len([argument for argument in values if argument.arg not in ("self", "cls")])
        if count > MOST_PARAMETERS:
            name = f"{owner.name}.{function.name}" if owner else function.name
            yield Offence(source.path, function.lineno, f"{name} has {count} parameters")
