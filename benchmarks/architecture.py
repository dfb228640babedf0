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
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from figures import Figures, parser

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from rigs import distributions
from rigs.architecture.assignments import foreign_assignments
from rigs.architecture.docstrings import undocumented
from rigs.architecture.imports import circles, imports, room, upward
from rigs.architecture.sizes import LONGEST_MODULE, long_functions, wide_constructors
from rigs.architecture.sources import FACE, ROOT, Offence, Source, listed_files, python_sources
from rigs.architecture.statuses import repeated_statuses
from rigs.architecture.words import words_in_names, words_in_text

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


def distribution_offences() -> Iterator[Offence]:
    """Top-level names of the wheel and the sdist that do not belong there, and files that are missing."""
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
