"""Frames of the live view at the sizes that people have: full, red where something failed, the verdict at the end."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace

import pytest
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.segment import Segment
from rigs.event_examples import EVENTS, TAKEN
from rigs.outcome_examples import campaign_outcome, device_outcome, snapshot
from rigs.view_scenes import SETTINGS, SIZES, ended, scene

from fleetnas.coordinator.records.events import Event
from fleetnas.coordinator.records.run_progress import RunProgress
from fleetnas.coordinator.records.snapshot import Snapshot
from fleetnas.coordinator.records.statuses import SettingStatus
from fleetnas.coordinator.view.event_briefs import brief_line
from fleetnas.coordinator.view.live import LiveView, frame_strips
from fleetnas.coordinator.view.strip import FAILED, FAILED_TEXT
from fleetnas.coordinator.view.summary import print_summary


def lines_of(view: Snapshot, width: int, height: int) -> list[str]:
    return ["".join(segment.text for segment in strip) for strip in frame_strips(view, width, height)]


def red(strips: Sequence[Sequence[Segment]]) -> str:
    """Return all text in the colour of failures."""
    return " ".join(segment.text for strip in strips for segment in strip if segment.style in (FAILED, FAILED_TEXT))


def of_kind(kind: str) -> Event:
    return next(event for event in EVENTS if event.event == kind)


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("settings", SETTINGS)
def test_no_part_of_the_screen_is_left_empty(settings: int, width: int, height: int) -> None:
    lines = lines_of(scene(settings), width, height)
    assert len(lines) == height
    assert {cell_len(line) for line in lines} == {width}
    assert all(line.strip("│╭╮╰╯─ ") for line in lines if not line.startswith(("╰", "│")))
    for half in (lines[: height // 2], lines[height // 2 :]):
        assert sum(len(line.split()) > 2 for line in half) >= 0.8 * len(half)
    # On the right, too, there is more than frames.
    assert sum(bool(line[width // 2 :].strip("│╮╯─ ")) for line in lines) >= height // 3


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("settings", SETTINGS)
def test_progress_time_left_and_targets_are_in_the_header(settings: int, width: int, height: int) -> None:
    second = lines_of(scene(settings), width, height)[1]
    assert "█" in second
    assert "35 %" in second
    assert "23:10 left" in second
    assert "targets met" in second
    if width >= 120:
        assert "(18:50 to 29:50)" in second


def test_without_an_estimate_nothing_is_said_of_the_time_left() -> None:
    for progress in (None, RunProgress(1.0, 0.0, 0.0, 0.0)):
        view = replace(scene(6), progress=progress)
        assert "left" not in lines_of(view, 120, 40)[1]
        assert "█" not in lines_of(view, 120, 40)[1]


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_failures_alone_are_red(width: int, height: int) -> None:
    view = scene(12)
    shown = red(frame_strips(view, width, height))
    assert "1 failed" in shown
    assert "✗ failed" in shown
    assert "every measurement crashed" in shown
    assert "crashed (signal 11" in shown
    assert "lost " not in shown.replace("✘ nuc lost", "").replace("✘ kitchen-pi4 lost", "")
    # In a narrow column the reason stands behind the headings.
    narrow = red(frame_strips(scene(6), width, height))
    assert "every measurement crashed" in narrow
    well = tuple(device for device in view.devices if device.state != "failed")
    assert not red(frame_strips(replace(view, devices=well, log=()), width, height))


def test_what_a_device_does_is_said_in_words() -> None:
    text = "\n".join(lines_of(scene(12), 200, 50))
    for words in (
        "● measuring kitchen-pi4",
        "subnet 3fa2b1c4d5e6 as a candidate",
        "subnet 90ab12cd34ef for p95 33 ms",
        "the bundle 42 %",
        "battery at 22 %, below 30 %: plug the device in",
        "for the search to choose its next subnets",
        "nothing to measure now",
        "1.41x slower than its class",
    ):
        assert words in text


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_targets_of_every_kind_are_shown_with_their_unit(width: int, height: int) -> None:
    text = "\n".join(lines_of(scene(1), width, height))
    for words in ("p95 33", "30 fps", "5 mJ", "≥75 %", "verified at 29.3 fps", "4.71 mJ", "p95 31.7 ms"):
        assert words in text
    assert "29.3 fps; 29.3 fps" not in text


def test_classes_tags_and_baselines_have_their_place() -> None:
    text = "\n".join(lines_of(scene(6), 200, 50))
    assert "1 class of equal boards" in text
    assert "one of 3 boards of class Raspberry Pi 4" in text
    assert "rack-2 room:kitchen" in text
    assert "largest 81.2 ms, mine: it needs an operator" in text


def test_a_line_that_is_cut_keeps_device_value_slowness_and_count() -> None:
    slowed = of_kind("measurement").model_copy(update={"quality": "slowed"})
    line = brief_line(slowed)
    assert line is not None
    kept = set_cell_size(line, 50)
    for words in ("board-0/ort_1t", "1.93 ms", "slowed", f"{TAKEN['measurements']} of {TAKEN['budget']}"):
        assert words in kept


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.event)
def test_every_event_begins_with_what_matters(event: Event) -> None:
    line = brief_line(event)
    if event.event in ("predictor_updated", "progress"):
        assert line is None
        return
    assert line is not None
    start = set_cell_size(line, 45)
    expected = {
        "measurement": "1.93 ms",
        "failure": "✘ board-0/ort_1t: crashed",
        "device_lost": "✘ board-0 lost",
        "measurements_slowed": "! board-0/ort_1t: 3 of 9",
        "winner_verified": "✓ board-0/ort_1t: 2 ms met: 1.86 ms",
        "target_infeasible": "✗ board-0/ort_1t: 0.1 ms infeasible",
        "baseline_measured": "baseline largest",
        "campaign_finished": "partial after 2:10: 3 of 4 targets met",
    }
    assert expected.get(event.event, "board-0" if hasattr(event, "device") else "") in start


def test_a_target_of_another_kind_is_named_in_its_line() -> None:
    met = of_kind("winner_verified").model_copy(update={"target": "p95:33", "value": 31.7, "value_high": 32.4})
    line = brief_line(met)
    assert line is not None
    assert "p95 33 ms met" in line
    assert "p95 31.7 ms (at most 32.4)" in line


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("settings", SETTINGS)
def test_the_verdict_is_the_last_line_and_stands_once(settings: int, width: int, height: int) -> None:
    lines = lines_of(ended(settings), width, height)
    assert "partial after 2:10: 3 of 4 targets met" in lines[-1]
    assert sum("3 of 4 targets met" in line for line in lines) == 1


def ended_view(summary_follows: bool) -> str:
    console = Console(file=io.StringIO(), width=120, height=40, force_terminal=True)
    view = LiveView(console, clock=lambda: 0.0, summary_follows=lambda: summary_follows)
    noted = replace(snapshot(3), log=("the store was away for 3 s",))
    view.update(noted)
    for kind in ("measurement", "campaign_finished"):
        view.event(of_kind(kind))
    view.close()
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().split("\x1b[?1049l")[1]


def test_the_last_frame_ends_with_the_verdict_that_came_after_the_last_snapshot() -> None:
    rest = ended_view(summary_follows=False)
    assert "3 of 4 targets met" in rest.splitlines()[-1]
    assert "measuring" in rest


def test_before_a_summary_only_the_notes_stay() -> None:
    rest = ended_view(summary_follows=True)
    assert rest.count("the store was away for 3 s") == 1
    for shown_by_the_summary in ("measuring", "targets met", "1.93 ms"):
        assert shown_by_the_summary not in rest


def test_the_summary_ends_with_the_verdict() -> None:
    console = Console(file=io.StringIO(), width=100)
    outcome = campaign_outcome(device_outcome("board-a"), device_outcome("board-b", status=SettingStatus.FAILED))
    print_summary(console, outcome, ["results and model files: out", "go on with: fleetnas search --resume x"])
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert lines[-1] == "7 of 8 targets met by a fresh re-measurement"
    assert lines[-3:-1] == ["results and model files: out", "go on with: fleetnas search --resume x"]
    assert sum("targets met" in line for line in lines) == 1
