"""Every command of every page runs as it is written, on a machine that is thrown away afterwards."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from rigs import documented_machine, documented_scene
from rigs.documented_commands import ROOT, commands, pages

#: Commands that need hardware or hosts which a test does not have.
MOST_MARKED = 10
_PAGES = [page.relative_to(ROOT).as_posix() for page in pages()]


def test_few_commands_are_marked_as_not_run() -> None:
    marked = [command for page in pages() for command in commands(page) if command.mark is not None]
    assert len(marked) <= MOST_MARKED, marked


def skip_where_no_machine_can_be_made() -> None:
    if reason := documented_machine.can_enter():
        pytest.skip(reason)


def assert_all_ran(page: str, given: Path) -> None:
    wrong = [record for record in documented_scene.run_page(page, given) if not record["fine"]]
    assert not wrong, "\n".join(f"{page}:{record['line']}: {record['text']}\n{record['said']}" for record in wrong)


@pytest.fixture(scope="session")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    skip_where_no_machine_can_be_made()
    if "FLEETNAS_DATA" not in os.environ:
        pytest.skip("FLEETNAS_DATA names no folder of reference data, which has the tables of a page")
    folder = tmp_path_factory.mktemp("given")
    documented_scene.furnish(folder)
    return folder


@pytest.mark.soak
@pytest.mark.parametrize("page", _PAGES)
def test_every_command_of_the_page_runs(page: str, given: Path) -> None:
    assert_all_ran(page, given)


def test_the_tutorial_runs_as_it_is_written(tmp_path: Path) -> None:
    """From an empty folder: this page takes nothing as given."""
    skip_where_no_machine_can_be_made()
    assert_all_ran("docs/tutorial.md", tmp_path)
