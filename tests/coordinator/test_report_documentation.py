"""`docs/results.md` describes every field that is written."""

from __future__ import annotations

import re
import typing
from pathlib import Path

import pytest
from pydantic import BaseModel

from fleetnas.coordinator.records.events import Event
from fleetnas.coordinator.report.artifacts import WinnerCard
from fleetnas.coordinator.report.results import (
    BaselineResult,
    BoardResult,
    ComparisonResult,
    DeviceResult,
    FailureResult,
    LearningResult,
    QualityResult,
    RegimeResult,
    Results,
    SupernetResult,
    TargetResult,
)
from fleetnas.coordinator.store.measurement_table import COLUMNS

PAGE = (Path(__file__).parents[2] / "docs" / "results.md").read_text()
COMMON = {"event", "at_s", "run_id", "device", "setting"}


def documented(heading: str) -> set[str]:
    """Names in the first column of the tables under a heading."""
    section = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", PAGE, re.DOTALL | re.MULTILINE)
    assert section is not None, f"no section {heading}"
    cells = (line.split("|")[1] for line in section[1].splitlines() if line.startswith("| `"))
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


@pytest.mark.parametrize(
    ("heading", "model"),
    [
        ("results.json", Results),
        ("`supernet`", SupernetResult),
        ("`fleet[]`", DeviceResult),
        ("`fleet[].predictor` and `fleet[].learning[]`", LearningResult),
        ("`fleet[].board`", BoardResult),
        ("`fleet[].quality`", QualityResult),
        ("`fleet[].regimes[]`", RegimeResult),
        ("`fleet[].targets[]`", TargetResult),
        ("`fleet[].baselines[]`", BaselineResult),
        ("`fleet[].baselines[].comparisons[]`", ComparisonResult),
        ("`fleet[].failures[]`", FailureResult),
    ],
)
def test_results(heading: str, model: type[BaseModel]) -> None:
    assert documented(heading) == set(model.model_fields)


def test_card() -> None:
    assert documented("The model's card") == set(WinnerCard.model_fields) - set(TargetResult.model_fields)


def test_columns() -> None:
    assert documented("measurements.csv") == set(COLUMNS)


@pytest.mark.parametrize("event", typing.get_args(typing.get_args(Event)[0]))
def test_events(event: type[BaseModel]) -> None:
    assert documented(f"`{event.model_fields['event'].default}`") == set(event.model_fields) - COMMON


def test_fields_that_every_event_has() -> None:
    assert documented("Events") == COMMON
