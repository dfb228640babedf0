"""Plain lines and JSON lines, for where there is no terminal."""

from __future__ import annotations

import dataclasses
import io
import json
import typing

import pytest
from rich.console import Console
from rigs.event_examples import EVENTS, SUBNET
from rigs.outcome_examples import snapshot

from fleetnas.coordinator.records.events import (
    Event,
    MeasurementTaken,
    StoreAvailable,
    StoreUnavailable,
    event_from_fields,
)
from fleetnas.coordinator.view.lines import JsonView, LinesView, event_line
from fleetnas.coordinator.view.live import LiveView
from fleetnas.coordinator.view.view import make_view


def test_every_kind_of_event_is_here() -> None:
    kinds = set(typing.get_args(typing.get_args(Event)[0]))
    assert {type(event) for event in EVENTS} == kinds - {StoreUnavailable, StoreAvailable}


def test_json_is_one_object_per_line_and_reads_back_equal() -> None:
    stream = io.StringIO()
    view = JsonView(stream)
    view.update(snapshot())
    for event in EVENTS:
        view.event(event)
    view.close()
    lines = stream.getvalue().splitlines()
    assert tuple(event_from_fields(json.loads(line)) for line in lines) == EVENTS
    assert [json.loads(line)["event"] for line in lines[:3]] == ["campaign_started", "device_joined", "device_lost"]


def test_plain_lines_are_one_per_event_worth_one() -> None:
    stream = io.StringIO()
    view = LinesView(stream)
    for event in EVENTS:
        view.event(event)
    view.close()
    lines = stream.getvalue().splitlines()
    # None for the predictor's error, two for the end of a campaign with slowed devices.
    assert len(lines) == len(EVENTS)
    assert all(line.startswith("22:13:20 ") and line.isprintable() for line in lines)
    assert any(
        "measured 1.93 ms ±0.7 %, predicted 1.95 beforehand: candidate" in line and "12 of 40" in line for line in lines
    )
    (met,) = (line for line in lines if "target 2 ms met" in line)
    assert "verified at 1.86 ms, accuracy 94.4 %; typical 1.96 ms; constrains nothing: the largest" in met
    assert "3 of 4 targets met, lost board-1, failed board-2, results in out/results.json" in lines[-2]


def test_disturbed_data_are_told_loudly_once_during_the_search_and_once_at_its_end() -> None:
    stream = io.StringIO()
    view = LinesView(stream)
    for event in EVENTS:
        view.event(event)
    view.close()
    view.close()
    during, end = (line for line in stream.getvalue().splitlines() if "WARNING" in line)
    assert "WARNING: 3 of 9 measurements slowed down on board-0/onnxruntime_cpu_1t_fp32, up to 4.17x; " in during
    assert "WARNING: more than a quarter of the measurements slowed down on board-0/onnxruntime_cpu_1t_fp32; " in end
    assert during.partition("; ")[2] == end.partition("; ")[2]
    (speed,) = (line for line in stream.getvalue().splitlines() if "lasting speed" in line)
    assert "runs at another lasting speed: 1.45 times the latency at undisturbed speed; measurements go on" in speed


def test_the_warning_of_the_end_is_left_to_a_summary_that_follows() -> None:
    stream = io.StringIO()
    view = LinesView(stream, summary_follows=lambda: True)
    for event in EVENTS:
        view.event(event)
    view.close()
    (during,) = (line for line in stream.getvalue().splitlines() if "WARNING" in line)
    assert "3 of 9 measurements slowed down" in during


def test_each_phase_is_told_once() -> None:
    stream = io.StringIO()
    view = LinesView(stream)
    for step in range(101):
        view.update(dataclasses.replace(snapshot(), phase="waiting for devices" if step < 50 else "searching", log=()))
    lines = [line.partition(" ")[2] for line in stream.getvalue().splitlines()]
    assert lines == ["phase: waiting for devices", "phase: searching"]


def test_a_measurement_of_the_initial_design_explores() -> None:
    taken = next(event for event in EVENTS if isinstance(event, MeasurementTaken))
    exploring = event_line(taken.model_copy(update={"purpose": "initial-design"}))
    assert exploring is not None
    assert f": exploring {SUBNET.fingerprint}, 12 of 40" in exploring


def test_each_note_of_the_coordinator_is_told_once() -> None:
    stream = io.StringIO()
    view = LinesView(stream)
    notes = [f"note {number}" for number in range(30)]
    for end in (2, 2, 5, 25, 30):
        view.update(dataclasses.replace(snapshot(), log=tuple(notes[max(0, end - 20) : end])))
    assert [line.partition(" ")[2] for line in stream.getvalue().splitlines()] == ["phase: searching", *notes]


class _ClosedPipe(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError


@pytest.mark.parametrize("view", [LinesView(_ClosedPipe()), JsonView(_ClosedPipe())])
def test_a_reader_that_went_away_does_not_end_the_campaign(view: LinesView | JsonView) -> None:
    for event in EVENTS:
        view.event(event)


def test_a_narrow_encoding_loses_signs_and_not_lines() -> None:
    raw = io.BytesIO()
    view = LinesView(io.TextIOWrapper(raw, encoding="ascii"))
    for event in EVENTS:
        view.event(event)
    view.close()
    assert len(raw.getvalue().splitlines()) == len(EVENTS)


def test_the_output_decides_on_the_view(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    terminal, pipe = (Console(file=io.StringIO(), force_terminal=terminal) for terminal in (True, False))
    assert isinstance(make_view(terminal, json=False), LiveView)
    assert isinstance(make_view(pipe, json=False), LinesView)
    assert isinstance(make_view(terminal, json=True), JsonView)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(make_view(Console(file=io.StringIO(), force_terminal=True), json=False), LinesView)
