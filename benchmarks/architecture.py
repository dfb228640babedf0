"""Count what the project promises about its own sources: imports, sizes, constructors, words, docstrings, the wheel.

Every figure is read from syntax trees and texts; nothing of the project is imported. `--details` lists each offender
with its file and line. The rules:

- *Circles* and *upward imports* look at every import, also inside functions and under `TYPE_CHECKING`. A circle is a
  strongly connected group of modules, or of rooms (the folders inside the packages). The rows come from
  import-linter's `layers` contracts in `pyproject.toml`. An import is upward if it leads to a higher layer of the same
  row, or to the public face above all packages.
- *Lengths* are physical lines. Modules are those of the product; functions are those of the whole checkout, and a
  function's length leaves its decorators out.
- *Constructors* are hand-written `__init__` and `__new__`, class methods that return their own class, and functions
  `build_*`, `make_*`, `create_*` and `compose_*`. Fields of dataclasses and pydantic models are data, not parameters.
  Parameters with defaults that are keyword-only are options and do not count; neither do `self` and `cls`.
- *Foreign assignments* are `other.attribute = ...`, also augmented, deleted, or with `setattr`. Allowed are `self` and
  `cls`, and an object that the same function made before: a name (or `self.name`) bound to the result of a call. A call
  that only looks an object up (`get`, `pop`, `next`, ...) does not count as making one. `LIBRARY_ATTRIBUTES` names
  attributes of other libraries' objects that can be set in no other way.
- *Words* are those that the glossary replaced. `ANYWHERE` is searched in all code, comments and documents, `NAMES` only
  in names that the code defines (variables, parameters, functions, classes, attributes, modules); `ALLOWED` names the
  places where a word has its ordinary or technical meaning.
- *Undocumented public names* are modules, classes, functions and methods without a docstring, except `__init__` and
  other special methods, overloads and setters.
- *Definitions of a status* are `Literal` types and enums of two or more strings. Two of them are duplicates if all
  values of one are also values of the other, or if they share three. Migrations keep the values of their time and do
  not count.
- *The wheel and the sdist* are built from the files that git knows or would add; `--no-wheel` leaves this out.
"""

from __future__ import annotations

import argparse
import ast
import re
import statistics
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from figures import Figures, parser

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

PACKAGES = ("device_profiles", "fleet_protocol", "supernet_export", "agent", "coordinator")
FACE = "fleetnas"

LONGEST_MODULE = 350
LONGEST_FUNCTION = 60
MOST_PARAMETERS = 8

#: The figures in the order of printing, and their bars.
BARS = {
    "circles": "== 0",
    "circles_of_rooms": "== 0",
    "upward_imports": "== 0",
    "largest_module_lines": f"<= {LONGEST_MODULE}",
    "median_module_lines": "<= 130",
    "functions_over_60_lines": "<= 5",
    "constructors_over_8_parameters": "<= 3",
    "modules_assigning_foreign_attributes": "== 0",
    "replaced_words": "== 0",
    "undocumented_public_names": "== 0",
    "repeated_definitions_of_a_status": "== 0",
    "wheel_and_sdist": "== 0",
}

#: Replaced words, searched in code, comments and documents. Space stands for a space, a hyphen or an underscore.
ANYWHERE = {
    "foretell": "foretells?|foretold",
    "evidence": "evidence",
    "lesson": "lessons?",
    "desk": "desks?",
    "hand out": "(?:hand|hands|handed|handing) out",
    "take back": "(?:take|takes|took|taken|taking) back",
    "conclude": "concludes?|concluded",
    "track": "tracks?",
    "standing": "standings?",
    "hungry": "hungry",
    "fates": "fates",
    "hear": "hears?|heard|hearing",
    "pass on": "(?:pass|passes|passed|passing) on",
    "stray": "strays?",
    "belief": "beliefs?",
    "sharpen": "sharpens?|sharpened",
    "misfit": "misfits?",
    "active choice": "active choice",
    "take home": "(?:take|takes|took|taken) home",
    "roll call": "roll calls?",
    "audience": "audiences?",
    "news": "news",
    "outage": "outages?",
    "refusals": "refusals",
    "workbench": "workbench",
    "carry out": "(?:carry|carries|carried|carrying) out",
    "equipment": "equipment",
    "patient": "patients?",
    "examine": "examines?|examined",
    "mend": "mends?|mended|mending",
    "presence": "presence",
    "give way": "(?:give|gives|gave|giving) way",
    "stillborn": "stillborn",
    "last words": "last words",
    "post mortem": "post mortem",
    "vanish": "vanish|vanishes|vanished",
    "dared": "dared",
    "hopeless": "hopeless",
}

#: Replaced words that are ordinary English elsewhere, searched as parts of the names that the code defines.
NAMES = {
    "spread": "spread",
    "due": "due",
    "stale": "stale",
    "fresh": "fresh",
    "wire": "wire",
    "say": "say|says|said",
    "lose": "lose|loses",
    "roots": "roots",
    "library": "library|libraries",
    "likely": "likely",
    "remembered": "remembered",
    "known accuracy": "known accuracy",
    "why": "why",
    "broadcast": "broadcast|broadcasts",
    "watching": "watching",
    "watched": "watched",
    "lasts": "lasts",
    "holding": "holding",
    "health": "health",
    "hope": "hope",
}

#: Names that are wrong only as a whole, as `over` is part of many good ones.
WHOLE_NAMES = ("over", "Next")

#: The same of modules.
MODULE_NAMES = ("held_out", "sentinel")

#: Where a word means something else, as a pattern of paths: (word, places, meaning).
ALLOWED = (
    ("*", r"benchmarks/architecture\.py", "this list"),
    ("*", r"coordinator/store/migrations/versions/.*", "names of tables as they were"),
    ("presence", r"coordinator/predictors/.*|docs/predictors\.md", "a feature: whether a network has the block"),
    ("spread", r"coordinator/predictors/.*", "the standard deviation around a mean"),
    ("spread", r"supernet_export/(quantisation|digits/.*|training/digits_accuracy)\.py", "a range of values"),
    ("spread", r"coordinator/view/strip\.py", "lays text out over a width"),
    ("library", r"agent/cli/doctor/?.*\.py|agent/host/.*|agent/runtimes/.*", "a C library"),
)


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


# Imports


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


# Sizes


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


# Assignments to other objects

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


# Words


def _allowed(word: str, path: str) -> bool:
    return any(name in ("*", word) and re.fullmatch(place, path) for name, place, _ in ALLOWED)


def _pattern(words: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![A-Za-z])(?:{words.replace(' ', '[ _-]')})(?![A-Za-z])", re.IGNORECASE)


_ANYWHERE = {word: _pattern(words) for word, words in ANYWHERE.items()}
_NAMES = {word: _pattern(words) for word, words in NAMES.items()}
_ANY_WORD = _pattern("|".join(ANYWHERE.values()))
_HUMPS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


def words_in_text(path: str, text: str) -> Iterator[Offence]:
    """Replaced words anywhere in a file; in Python also as parts of names."""
    joined = re.sub(r"\n[ \t#:]*", lambda gap: " " * len(gap[0]), text) if path.endswith((".py", ".md")) else text
    found = [(match.start(), match[0], match[0]) for match in _ANY_WORD.finditer(joined)]
    for match in re.finditer(r"\b_*[A-Z]\w*[a-z]\w*\b", text if path.endswith(".py") else ""):
        split = _HUMPS.sub(" ", match[0])
        if split != match[0]:
            found += [(match.start(), match[0], part[0]) for part in _ANY_WORD.finditer(split)]
    for start, shown, part in found:
        word = next(word for word, pattern in _ANYWHERE.items() if pattern.fullmatch(part))
        if not _allowed(word, path):
            yield Offence(path, text.count("\n", 0, start) + 1, f"the word `{shown}` ({word})")


def _defined_names(source: Source) -> Iterator[tuple[str, int]]:
    yield source.path.rpartition("/")[2].removesuffix(".py"), 1
    for node in ast.walk(source.tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr, node.lineno


def words_in_names(source: Source) -> Iterator[Offence]:
    """Replaced words in names that the file defines."""
    module = source.path.rpartition("/")[2].removesuffix(".py")
    if module in MODULE_NAMES:
        yield Offence(source.path, 1, f"the module `{module}`")
    for name, line in sorted(set(_defined_names(source)), key=lambda found: found[1]):
        if name in WHOLE_NAMES and not _allowed(name, source.path):
            yield Offence(source.path, line, f"the name `{name}`")
        split = _HUMPS.sub("_", name)
        for word, pattern in _NAMES.items():
            if pattern.search(split) and not _allowed(word, source.path):
                yield Offence(source.path, line, f"the name `{name}` ({word})")


# Docstrings


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


# Statuses


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


# The wheel and the sdist


def distribution_offences() -> Iterator[Offence]:
    """Top-level names of the wheel and the sdist that do not belong there, and files that are missing."""
    from rigs import distributions

    expected = distributions.expected_files(ROOT)
    with tempfile.TemporaryDirectory() as folder:
        built = distributions.build(Path(folder))
        in_wheel, in_sdist = distributions.wheel_files(built.wheel), distributions.sdist_files(built.sdist)
    for name in sorted({file.partition("/")[0] for file in in_wheel} - {FACE}):
        yield Offence(built.wheel.name, 0, f"the top-level name {name}")
    for name in sorted(expected ^ in_wheel):
        yield Offence(built.wheel.name, 0, f"{'lacks' if name in expected else 'holds'} {name}")
    for name in sorted(expected - in_sdist):
        yield Offence(built.sdist.name, 0, f"lacks {name}")


def collect(files: Sequence[str], sources: Sequence[Source]) -> dict[str, list[Offence]]:
    """All offences that are read from the sources and documents, by the figure that counts them."""
    product = [source for source in sources if source.of_product]
    at = {source.module: source.path for source in product}
    edges = [(source, target, line) for source in product for target, line in imports(source, set(at))]
    graph: dict[str, set[str]] = {module: set() for module in at}
    rooms: dict[str, set[str]] = {room(module): set() for module in at}
    for source, target, _ in edges:
        graph[source.module].add(target)
        rooms[room(source.module)] |= {room(target)} - {room(source.module)}
    texts = [name for name in files if not name.startswith("tests/") and name.endswith((".py", ".md", ".j2", ".toml"))]
    found: dict[str, list[Offence]] = {
        "circles": [Offence(at[group[0]], 1, ", ".join(group)) for group in circles(graph)],
        "circles_of_rooms": [
            Offence(group[0].removeprefix(f"{FACE}.").replace(".", "/"), 1, ", ".join(group))
            for group in circles(rooms)
        ],
        "upward_imports": list(upward(edges)),
        "modules_over_350_lines": [
            Offence(one.path, 1, f"{one.lines} lines") for one in product if one.lines > LONGEST_MODULE
        ],
        "functions_over_60_lines": [one for source in sources for one in long_functions(source)],
        "constructors_over_8_parameters": [one for source in sources for one in wide_constructors(source)],
        "foreign_assignments": [one for source in product for one in foreign_assignments(source)],
        "replaced_words": [one for name in texts for one in words_in_text(name, (ROOT / name).read_text())],
        "undocumented_public_names": [one for source in product for one in undocumented(source)],
        "repeated_definitions_of_a_status": list(repeated_statuses(product)),
    }
    found["replaced_words"] += [one for source in sources if source.path in texts for one in words_in_names(source)]
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the figures; the exit status is 0 if all bars are met."""
    options = parser(__doc__)
    options.formatter_class = argparse.RawDescriptionHelpFormatter
    options.add_argument("--details", action="store_true", help="list every offender with its file and line")
    options.add_argument("--no-wheel", action="store_true", help="build neither the wheel nor the sdist")
    options.add_argument("--only", default="", help="count and list offenders of paths that begin so, such as agent/")
    chosen = options.parse_args(arguments)

    files = listed_files()
    sources = python_sources(files)
    offences = collect(files, sources)
    if not chosen.no_wheel:
        offences["wheel_and_sdist"] = list(distribution_offences())
    offences = {name: [one for one in all_ if one.file.startswith(chosen.only)] for name, all_ in offences.items()}
    lengths = [source.lines for source in sources if source.of_product and source.path.startswith(chosen.only)]

    figures = Figures()
    for name, bar in BARS.items():
        if name == "largest_module_lines":
            figures.add(name, max(lengths, default=0), bar)
        elif name == "median_module_lines":
            figures.add(name, statistics.median(lengths or [0]), bar)
        elif name == "modules_assigning_foreign_attributes":
            figures.add(name, len({one.file for one in offences["foreign_assignments"]}), bar)
        elif name in offences:
            figures.add(name, len(offences[name]), bar)
    figures.add("modules", len(lengths))
    figures.add("lines_of_modules", sum(lengths))
    if chosen.details:
        for name, found in offences.items():
            print(f"{name}: {len(found)}", *(f"  {one}" for one in found), sep="\n")
    return figures.report(as_json=chosen.json)


if __name__ == "__main__":
    sys.exit(main())
