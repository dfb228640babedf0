"""A target whose re-measurement was within it, but was not taken as proof, is missed in every count and view."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from rigs.command_line import fleetnas
from rigs.simulated_fleet import Simulation

from fleetnas.coordinator.records.plan import CampaignPlan
from fleetnas.coordinator.records.target_status import TargetStatus
from fleetnas.coordinator.records.targets import TargetRequest
from fleetnas.coordinator.records.totals import target_totals
from fleetnas.coordinator.report.stored_outcome import outcome_of, stored_totals
from fleetnas.coordinator.store.store import MeasurementStore

REASON = "not met in 6 re-measurements; the last: within it, at a typical speed that is known to within 4.0 % only"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """The store of a search that met both targets, one of them turned into a miss."""
    path = tmp_path / "runs.sqlite"
    store = MeasurementStore.open(str(path))
    plan = CampaignPlan(targets=TargetRequest.parse("auto:2"), budget=8, wait_for=1, prior="default")
    fleet = Simulation(plan, store=store)
    fleet.add("pi4")
    fleet.begin()
    fleet.run()
    fleet.campaign.finish()
    refused, other = store.winners("run-1")
    assert refused.met
    assert other.met
    store.put_winners([replace(refused, status=TargetStatus.MISSED, reason=REASON, sha256=None)])
    store.close()
    return path


def test_outcome_and_totals_agree(store: Path) -> None:
    opened = MeasurementStore.open(str(store))
    outcome = outcome_of(opened, "run-1")
    found = stored_totals(opened, "run-1", 2)
    opened.close()
    totals = target_totals(outcome.devices)
    assert (totals.met, totals.asked) == (found.met, found.asked) == (1, 2)
    assert [target.met for target in outcome.devices[0].targets] == [False, True]


def test_the_table_and_the_list_of_runs_agree(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = fleetnas(capsys, "results", "run-1", "--store", store)
    assert out.count("✓") == 1
    assert REASON in out
    assert "1 of 2 targets met" in out
    _, out, _ = fleetnas(capsys, "runs", "--store", store)
    assert "1 of 2" in out
