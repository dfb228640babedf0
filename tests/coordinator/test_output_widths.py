"""Tables break at words on a terminal of 80 columns; a pipe gets whole lines."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console
from rigs.command_line import fleetnas

from fleetnas.coordinator.cli.devices import table_of
from fleetnas.coordinator.view.tables import word_table

WHY = (
    "enrolled, and never seen by this broker: start `fleetnas-agent run --credentials` on it; if it runs, "
    "`fleetnas-agent doctor` there tells what is in its way"
)


def lines_of(table: object, width: int) -> list[str]:
    console = Console(width=width, color_system=None)
    with console.capture() as captured:
        console.print(table)
    return [line.rstrip() for line in captured.get().splitlines()]


def words_of(lines: list[str]) -> list[str]:
    return [word for line in lines for word in line.split()]


def test_the_results_of_a_pipe_are_whole_lines(capsys: pytest.CaptureFixture[str], finished_run: Path) -> None:
    code, out, _ = fleetnas(capsys, "results", "run-1", "--store", str(finished_run))
    assert code == 0
    marks = sum(out.count(mark) for mark in "✓✗·")
    assert marks == len([line for line in out.splitlines() if any(mark in line for mark in "✓✗·")]) > 0
    assert any(len(line) > 80 for line in out.splitlines())
    code, out, _ = fleetnas(capsys, "runs", "--store", str(finished_run))
    assert code == 0
    heading, *found = out.splitlines()
    assert heading.startswith("Run ")
    assert len(found) == 1


def test_devices_are_a_line_each_in_a_pipe_and_break_at_words_on_a_terminal() -> None:
    row = {
        "device": "raspberry-pi-4",
        "state": "unreadable",
        "last_seen_s_ago": None,
        "model": "Raspberry Pi 4 Model B Rev 1.4",
        "settings": ["onnxruntime_cpu_4t_fp32"],
        "tags": [],
        "equal_boards": [],
        "why": WHY,
    }
    narrow = lines_of(table_of([row], 80), 80)
    assert max(map(len, narrow)) <= 80
    for word in (*WHY.split(), "unreadable", "raspberry-pi-4"):
        assert word in words_of(narrow)
    wide = lines_of(table_of([row], 10_000), 10_000)
    assert any(WHY in line for line in wide)


def test_a_word_longer_than_its_column_is_folded_and_nothing_is_lost() -> None:
    table = word_table(("Name", "Why"), [("x" * 100, "because of this")], 40)
    lines = lines_of(table, 40)
    assert max(map(len, lines)) <= 40
    assert "".join(lines).count("x") == 100
