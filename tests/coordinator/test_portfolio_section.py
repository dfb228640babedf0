"""The report's section on a portfolio: what its file says, and nothing where that is of another run or damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fleetnas.coordinator.report.portfolio_section import PORTFOLIO_FILE, curve_picture, portfolio_section

CURVE = [
    {"models": 1, "mean_accuracy": 0.61, "served": 2, "greatest_loss": 0.1},
    {"models": 2, "mean_accuracy": 0.65, "served": 3, "greatest_loss": 0.05},
    {"models": 3, "mean_accuracy": 0.655, "served": 3, "greatest_loss": 0.0},
]
SERVED = {
    "device": "pi<4>",
    "setting": "onnxruntime_cpu_1t_fp32",
    "target_ms": 5.0,
    "weight": 1.0,
    "subnet": "2df809d3cb1e",
    "accuracy": 0.61,
    "latency_ms": 4.5,
    "known_by": "verified",
}
PORTFOLIO: dict[str, Any] = {
    "run_id": "run-1",
    "mean_accuracy": 0.65,
    "bound": {"mean_accuracy": 0.66, "greatest_loss": 0.05, "least_loss": None},
    "models": [{}, {}],
    "served": [SERVED, {**SERVED, "subnet": None, "accuracy": None, "latency_ms": None, "known_by": None}],
    "curve": CURVE,
}


def written(folder: Path, **changes: Any) -> Path:
    (folder / PORTFOLIO_FILE).write_text(json.dumps(PORTFOLIO | changes))
    return folder


def test_the_section_says_what_the_file_says(tmp_path: Path) -> None:
    found = portfolio_section(written(tmp_path), "run-1")
    assert found is not None
    assert (found.models, found.targets, found.mean_percent, found.bound_percent) == (2, 2, 65.0, 66.0)
    assert found.svg.count("<circle") == len(CURVE)
    assert found.svg.count('fill="none" stroke="var(--measured)"/>') == 1  # one point does not serve all
    assert "var(--winner)" in found.svg


@pytest.mark.parametrize(
    "changes",
    [{"run_id": "run-2"}, {"served": [{"device": "pi4"}]}, {"curve": [{"models": "<script>"}]}, {"mean_accuracy": "x"}],
)
def test_a_file_of_another_run_or_a_damaged_one_costs_the_section_alone(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    assert portfolio_section(written(tmp_path, **changes), "run-1") is None
    (tmp_path / PORTFOLIO_FILE).write_text("{")
    assert portfolio_section(tmp_path, "run-1") is None
    assert portfolio_section(tmp_path / "nowhere", "run-1") is None


def test_the_picture_stands_alone() -> None:
    picture = curve_picture(CURVE, 2)
    assert picture.startswith("<svg ")
    assert "var(" not in picture
    assert curve_picture([], 0) == ""
    assert curve_picture(CURVE[:1], 1).count("<circle") == 1
