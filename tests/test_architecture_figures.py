"""The detectors behind `benchmarks/architecture.py` find what they are for, and leave the rest alone."""

from __future__ import annotations

import sys

from rigs import waiting
from rigs.architecture.assignments import foreign_assignments
from rigs.architecture.docstrings import undocumented
from rigs.architecture.imports import circles, imports, upward
from rigs.architecture.sizes import long_functions, wide_constructors
from rigs.architecture.sources import ROOT, Source
from rigs.architecture.statuses import repeated_statuses
from rigs.architecture.words import words_in_names, words_in_text


def texts(offences: object) -> list[str]:
    return [one.text for one in offences]  # type: ignore[attr-defined]


def test_imports_in_functions_and_for_types_count() -> None:
    source = Source(
        "agent/host/probe.py",
        "from typing import TYPE_CHECKING\n"
        "from fleetnas.agent.host import board\n"
        "if TYPE_CHECKING:\n    from fleetnas.agent.cli.main import run\n"
        "def late():\n    import fleetnas.agent.host.power\n    from .board import thing\n",
    )
    modules = {
        *("fleetnas.agent.host", "fleetnas.agent.host.board", "fleetnas.agent.host.power", "fleetnas.agent.cli.main"),
        "fleetnas.agent.host.probe",
    }
    assert sorted(imports(source, modules)) == [
        ("fleetnas.agent.cli.main", 4),
        ("fleetnas.agent.host.board", 2),
        ("fleetnas.agent.host.board", 7),
        ("fleetnas.agent.host.power", 6),
    ]


def test_circles_are_strongly_connected_groups() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": {"e"}, "e": set(), "f": {"g"}, "g": {"f", "a"}}
    assert circles(graph) == [["a", "b", "c"], ["f", "g"]]


def test_imports_against_a_row_or_to_the_public_face_are_upward() -> None:
    source = Source("fleet_protocol/codec.py", "")
    found = texts(
        upward([(source, "fleetnas.agent.service.service", 3), (source, "fleetnas.device_profiles.profile", 4)])
    )
    assert found == ["fleetnas.fleet_protocol.codec imports fleetnas.agent.service.service, which is above it"]
    assert "public face" in texts(upward([(source, "fleetnas.api.tuner", 1)]))[0]
    store = Source("coordinator/store/store.py", "")
    assert texts(upward([(store, "fleetnas.coordinator.campaign.campaign", 1)]))
    assert not texts(upward([(store, "fleetnas.coordinator.records.events", 1)]))


def test_long_functions_and_wide_constructors_are_found() -> None:
    body = "\n".join("    pass" for _ in range(60))
    source = Source("agent/a.py", f"def short():\n    pass\n\ndef long():\n{body}\n")
    assert texts(long_functions(source)) == ["long has 61 lines"]
    names = ", ".join(f"p{number}" for number in range(9))
    options = ", ".join(f"o{number}=0" for number in range(9))
    source = Source(
        "agent/b.py",
        f"class Wide:\n    def __init__(self, {names}): ...\n"
        f"class Narrow:\n    def __init__(self, *, {options}): ...\n    def work(self, {names}): ...\n"
        f"def build_wide({names}): ...\n",
    )
    assert sorted(texts(wide_constructors(source))) == ["Wide.__init__ has 9 parameters", "build_wide has 9 parameters"]


def test_assignments_to_objects_of_others_are_found() -> None:
    source = Source(
        "agent/a.py",
        "class A:\n"
        "    def work(self, other, given):\n"
        "        self.x = 1\n"
        "        self.part.y = 2\n"
        "        other.z += 1\n"
        "        made = Thing()\n"
        "        made.z = 1\n"
        "        with opened() as file:\n            file.mode = 1\n"
        "        found = self.things.get(1)\n"
        "        found.z = 1\n"
        "        made = given\n"
        "        made.w, local = 1, 2\n"
        "        setattr(other, 'a', 1)\n"
        "        del other.b\n",
    )
    assert texts(foreign_assignments(source)) == [
        "self.part.y is set",
        "other.z is set",
        "found.z is set",
        "made.w is set",
        "setattr(other, ...)",
        "other.b is set",
    ]


def test_replaced_words_are_found_in_texts_and_in_names() -> None:
    found = texts(words_in_text("README.md", "It hears the news,\nand a task is handed\nout. Hearths do not."))
    assert found == ["the word `hears` (hear)", "the word `news` (news)", "the word `handed out` (hand out)"]
    source = Source("agent/a.py", "class StrayResults:\n    why_not = 1\n\ndef over(library, recover): ...\n")
    assert texts(words_in_text("agent/a.py", source.text)) == ["the word `StrayResults` (stray)"]
    assert sorted(texts(words_in_names(source))) == [
        "the name `library` (library)",
        "the name `over`",
        "the name `why_not` (why)",
    ]
    assert not texts(words_in_text("coordinator/store/migrations/versions/v0001_first.py", "news"))


def test_public_names_without_a_docstring_are_found() -> None:
    source = Source(
        "agent/a.py",
        '"""Module."""\nclass A:\n    """A."""\n    def bare(self): ...\n    def __init__(self): ...\n'
        "    def _own(self): ...\n\ndef loose(): ...\n",
    )
    assert sorted(texts(undocumented(source))) == ["A.bare has no docstring", "loose has no docstring"]
    assert texts(undocumented(Source("agent/b.py", "x = 1\n"))) == ["fleetnas.agent.b has no docstring"]


def test_statuses_that_are_defined_twice_are_found() -> None:
    first = Source("agent/a.py", "class State(str, Enum):\n    READY = 'ready'\n    BUSY = 'busy'\n    LOST = 'lost'\n")
    second = Source("agent/b.py", "x: Literal['ready', 'busy'] = 'ready'\ny: Literal['ready', 'other'] = 'other'\n")
    assert texts(repeated_statuses([first, second])) == ["busy, ready: also defined at agent/a.py:1"]


def test_the_project_keeps_its_own_limits() -> None:
    run = waiting.run([sys.executable, "benchmarks/architecture.py", "--no-wheel", "--details"], cwd=ROOT)
    assert run.returncode == 0, run.stdout
