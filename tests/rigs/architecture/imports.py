"""Circles of modules and rooms, and imports against the rows of `pyproject.toml`."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence

from rigs.architecture.sources import FACE, PACKAGES, ROOT, Offence, Source


def imports(source: Source, modules: set[str]) -> Iterator[tuple[str, int]]:
    """Each module of the project that `source` imports, with the line."""
    package = source.module if source.path.endswith("__init__.py") else source.module.rpartition(".")[0]
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name in modules:
                    yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                name = f"{base}.{alias.name}"
                if name in modules:
                    yield name, node.lineno
                elif base in modules:
                    yield base, node.lineno


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Strongly connected groups of two or more modules (Tarjan's algorithm, without recursion)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    on_stack: set[str] = set()
    found = []
    for start in sorted(graph):
        if start in index:
            continue
        work = [(start, iter(sorted(graph[start])))]
        index[start] = low[start] = len(index)
        stack.append(start)
        on_stack.add(start)
        while work:
            node, edges = work[-1]
            for other in edges:
                if other not in index:
                    index[other] = low[other] = len(index)
                    stack.append(other)
                    on_stack.add(other)
                    work.append((other, iter(sorted(graph[other]))))
                    break
                if other in on_stack:
                    low[node] = min(low[node], index[other])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == index[node]:
                    group = []
                    while not group or group[-1] != node:
                        group.append(stack.pop())
                        on_stack.discard(group[-1])
                    if len(group) > 1 or node in graph[node]:
                        found.append(sorted(group))
    return found


def room(module: str) -> str:
    """The folder of a package that holds a module, such as `fleetnas.agent.host`."""
    return ".".join(module.split(".")[:3])


def rows() -> list[tuple[str, list[list[str]]]]:
    """The rows of `pyproject.toml`: a container, and its layers from the highest to the lowest."""
    from importlinter import configuration
    from importlinter.application.use_cases import read_user_options

    configuration.configure()
    options = read_user_options(str(ROOT / "pyproject.toml"))
    found = []
    for contract in options.contracts_options:
        if contract["type"] == "layers":
            layers = [[part.strip(" ()") for part in re.split(r"[:|]", layer)] for layer in contract["layers"]]
            found += [(f"{container}.", layers) for container in contract.get("containers", [])] or [("", layers)]
    return found


def upward(edges: Sequence[tuple[Source, str, int]]) -> Iterator[Offence]:
    """Imports that go against a row, or from a package to the public face."""
    found = rows()
    for source, target, line in edges:
        inside = source.module.startswith(tuple(f"{FACE}.{name}" for name in PACKAGES))
        if inside and not target.startswith(tuple(f"{FACE}.{name}" for name in PACKAGES)):
            yield Offence(source.path, line, f"{source.module} imports the public face, {target}")
        for container, layers in found:
            heights = [
                next(
                    (
                        height
                        for height, layer in enumerate(layers)
                        for name in layer
                        if f"{module}.".startswith(f"{container}{name}.")
                    ),
                    None,
                )
                for module in (source.module, target)
            ]
            if heights[0] is not None and heights[1] is not None and heights[1] < heights[0]:
                yield Offence(source.path, line, f"{source.module} imports {target}, which is above it")
