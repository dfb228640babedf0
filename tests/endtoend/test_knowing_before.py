"""Real agents: what a dry run says before a search, and the portfolio that a search chooses and verifies at its end."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from rigs import waiting
from rigs.process_fleet import QUICK, Fleet, events, process_fleet

pytestmark = pytest.mark.xdist_group("endtoend")

AGENTS = ("pi4", "pi5", "orin")


def output_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    with waiting.watching(process):
        text = process.stdout.read()
        process.wait()
    return text


def dry_run(fleet: Fleet, *options: str) -> tuple[int, str]:
    access = ("--broker", str(fleet.broker.address), "--store", str(fleet.folder / "runs.sqlite"))
    line = ("--supernet", str(fleet.supernet), "--targets", "auto:4", *QUICK, "--dry-run", *options)
    process = fleet.start("fleetnas", "search", *access, *line, pipe=True)
    text = output_of(process)
    return process.returncode, text


def test_a_search_is_estimated_before_and_ends_with_two_verified_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where results would go
    weights = tmp_path / "weights.json"
    with process_fleet(tmp_path) as fleet:
        for name in AGENTS:
            fleet.agent(name)
        code, text = dry_run(fleet, "--wait-for", "3", "--json", "--budget", "12")
        assert code == 0, fleet.complaints()
        before = json.loads(text)
        assert sorted(each["device"] for each in before["settings"]) == sorted(AGENTS)
        assert all(each["known_measurements"] == 0 for each in before["settings"])
        assert 0.0 < before["least_s"] < before["expected_s"] < before["most_s"]
        assert before["targets_each"] == 4
        assert not (tmp_path / "runs.sqlite").exists()
        assert not (tmp_path / "fleetnas-out").exists()

        weights.write_text(json.dumps({"pi9": 2}))
        wrong = fleet.new_search("--wait-for", "3", "--models", "2", "--weights", str(weights), targets="auto:4")
        assert list(events(wrong)) == []
        assert wrong.wait() == 2
        assert "names pi9; did you mean pi5? there are" in fleet.complaints().replace("\n", " ")

        weights.write_text(json.dumps({"pi4": 2}))
        options = ("--wait-for", "3", "--budget", "12", "--models", "2", "--weights", str(weights))
        search = fleet.new_search(*options, targets="auto:4")
        told = list(events(search))
        assert search.wait() == 0, fleet.complaints()
        portfolio = told[-1]
        assert portfolio["event"] == "portfolio"
        assert len(portfolio["models"]) <= 2
        assert len(portfolio["served"]) == 12
        assert all(each["known_by"] == "verified" for each in portfolio["served"])
        assert portfolio["bound"]["mean_accuracy"] >= portfolio["mean_accuracy"] - 1e-9
        assert {each["weight"] for each in portfolio["served"] if each["device"] == "pi4"} == {2.0}
        assert any(each["event"] == "progress" for each in told)
        written = json.loads((fleet.out / "portfolio.json").read_text())
        assert {"event": "portfolio", **written} == portfolio
        assert "number of models" in (fleet.out / "portfolio.svg").read_text()
        assert '<h2 id="portfolio">Portfolio</h2>' in (fleet.out / "report.html").read_text()

        # The line of the search to come, as it is, with --dry-run behind it.
        search = ("--wait-for", "3", "--budget", "12", "--max-parameters", "300K", "--timeout", "1s", "--models", "2")
        code, text = dry_run(fleet, *search, "--out", str(tmp_path / "planned"), "--metrics-port", "0")
        assert code == 0, fleet.complaints()
        assert "--timeout ends it before all is measured" in text
        assert "about 0:01 (0:01 to 0:01)" in text
        assert not (tmp_path / "planned").exists()
        assert "earlier measurements" in text
        assert "% of" in text
        assert "nothing was measured or stored; leave out --dry-run to begin" in text


def test_a_second_search_on_a_fleet_at_work_is_told(tmp_path: Path) -> None:
    with process_fleet(tmp_path) as fleet:
        fleet.agent("pi4")
        first = fleet.new_search("--budget", "200", "--timeout", "10m")
        told = events(first)
        run_id = next(each["run_id"] for each in told if each["event"] == "measurement")
        other = ("--broker", str(fleet.broker.address), "--store", str(tmp_path / "other.sqlite"))
        second = fleet.start(
            "fleetnas",
            *("search", *other, "--supernet", str(fleet.supernet), "--targets", "auto:2", *QUICK),
            *("--out", str(tmp_path / "other"), "--budget", "200"),
            pipe=True,
        )
        assert second.stdout is not None
        with waiting.watching(second):
            line = next(line for line in second.stdout if "is at work on this fleet too" in line)
        assert run_id in line
