"""Results are there as soon as they are: a coordinator that is killed leaves those of the targets that were met."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from rigs.fault_fleet import FaultFleet, fault_fleet, until

from fleetnas.coordinator.report.artifacts import read_results
from fleetnas.coordinator.report.html import render_report

pytestmark = pytest.mark.xdist_group("endtoend")


def signal_agent(fleet: FaultFleet, name: str, which: signal.Signals) -> None:
    """To the agent and all that it started."""
    os.killpg(fleet.processes[name].pid, which)


def settled(fleet: FaultFleet) -> dict[str, Any] | None:
    """The results, once one of alpha's targets is met in them."""
    path = fleet.out / "results.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"fleet": []}
    met = [target for device in found["fleet"] for target in device["targets"] if target["met"]]
    assert fleet.processes["coordinator"].poll() is None
    return found if met else None


def test_a_killed_coordinator_leaves_the_results_of_targets_that_were_met(tmp_path: Path) -> None:
    with fault_fleet(tmp_path) as fleet:
        for name in ("alpha", "beta"):
            fleet.start_agent(name)
        fleet.start_search("--targets", "1000", "--budget", "4", "--wait-for", "2", "--deadline", "60")
        until(lambda: any(event["event"] == "campaign_started" for event in fleet.events()))
        signal_agent(fleet, "beta", signal.SIGSTOP)  # as long as it stands still the run cannot end
        try:
            until(lambda: settled(fleet))
            fleet.kill("coordinator")
        finally:
            signal_agent(fleet, "beta", signal.SIGCONT)
        results = read_results(fleet.out)
        assert (results.status, results.finished_at, results.targets_met) == ("running", None, 1)
        alpha, beta = results.fleet
        assert ([target.met for target in alpha.targets], [target.open for target in beta.targets]) == ([True], [True])
        model = alpha.targets[0].model
        assert model is not None
        assert hashlib.sha256((fleet.out / model).read_bytes()).hexdigest() == alpha.targets[0].sha256
        assert "still running" in render_report(fleet.out)
        assert not [path for path in fleet.out.rglob(".*") if path.is_file()]
        fleet.resume_search()
        assert fleet.wait_search() == 0
        assert fleet.results()["status"] == "complete"
        assert fleet.results()["targets_met"] == 2
