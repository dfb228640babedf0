"""`benchmarks/training.py` keeps finished runs, and compares fronts; no supernet is trained here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RUN = {
    "images": "digits", "schedule": "progressive", "budget": 3, "seed": 0, "epochs": 15, "sample_steps": 1000,
    "wall_s": 10.0, "cpu_s": 10.0, "compound": [[100, 80.0], [200, 90.0]], "own": [[100, 80.5]],
}  # fmt: skip
COMPOUND = {"schedule": "compound", "sample_steps": 500, "cpu_s": 5.0, "own": []}


def benchmark(runs: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "benchmarks/training.py", "--seeds", "1", "--json", "--runs", str(runs), *arguments]
    picture = str(runs.with_suffix(".png"))
    return subprocess.run(
        [*command, "--picture", picture], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )


def lines(*budgets: int, lower: float) -> str:
    """Runs of both schedules at budgets; compound's front is lower by the given points."""
    found: list[dict[str, Any]] = []
    for budget in budgets:
        points = [[macs, accuracy - lower] for macs, accuracy in RUN["compound"]]  # type: ignore[attr-defined]
        found += [RUN | {"budget": budget}, RUN | COMPOUND | {"budget": budget, "compound": points}]
    return "".join(json.dumps(run) + "\n" for run in found)


def test_finished_runs_are_not_trained_again_and_a_cut_line_is_removed(tmp_path: Path) -> None:
    runs = tmp_path / "runs.jsonl"
    whole = lines(3, 8, lower=0.25)
    runs.write_text(whole + '{"images": "dig')
    done = benchmark(runs, "--budgets", "3,8")
    assert done.returncode == 0, done.stderr
    assert runs.read_text() == whole
    assert runs.with_suffix(".png").stat().st_size > 0
    figures = json.loads(done.stdout)["figures"]
    assert figures["digits_budget_8_front_gap_points"] == {"value": -0.25, "bar": ">= -0.5", "ok": True}
    assert figures["digits_budget_3_front_gap_points"]["bar"] == ""
    assert figures["digits_budget_3_sample_steps_ratio"]["value"] == 0.5


def test_the_front_has_a_bar_at_the_longest_budget_only(tmp_path: Path) -> None:
    runs = tmp_path / "runs.jsonl"
    runs.write_text(lines(3, lower=2.0) + lines(8, lower=0.0))
    assert benchmark(runs, "--budgets", "8,3").returncode == 0
    runs.write_text(lines(3, lower=0.0) + lines(8, lower=2.0))
    assert benchmark(runs, "--budgets", "8,3").returncode == 1


def test_a_file_of_other_lines_and_a_short_budget_are_refused(tmp_path: Path) -> None:
    runs = tmp_path / "runs.jsonl"
    runs.write_text('{"schedule": "compound"}\n')
    assert "holds other lines than this benchmark's runs" in benchmark(runs).stderr
    assert "a budget is 2 epochs or more, found 1" in benchmark(runs, "--budgets", "1,8").stderr
