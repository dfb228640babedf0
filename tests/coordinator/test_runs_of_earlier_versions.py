"""Runs that earlier versions stored: they are migrated, read and resumed to their end."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from rigs.simulated_fleet import Simulation

from fleetnas.coordinator.monitoring.store_feed import StoreFeed
from fleetnas.coordinator.records import events
from fleetnas.coordinator.records.plan import settings_of
from fleetnas.coordinator.records.statuses import RunStatus, SettingStatus
from fleetnas.coordinator.records.target_status import TargetStatus
from fleetnas.coordinator.report.conversion import results_of
from fleetnas.coordinator.report.stored_outcome import outcome_of
from fleetnas.coordinator.store.store import MeasurementStore

STORES = Path(__file__).with_name("stores")
DEVICES = ("pi4", "pi5")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store that the code of commit 2571e91 wrote: a run that ended, and one that was interrupted."""
    path = tmp_path / "runs.sqlite"
    with closing(sqlite3.connect(path)) as plain:
        plain.executescript((STORES / "runs_of_2571e91.sql").read_text(encoding="utf-8"))
    return path


def test_a_run_that_ended_is_shown_as_it_was(path: Path) -> None:
    with closing(sqlite3.connect(path)) as plain:
        before = plain.execute("SELECT met, fields ->> 'verified_ms', fields ->> 'reason' FROM winners").fetchall()
    store = MeasurementStore.open(path)
    run = store.run("ended")
    assert settings_of(run).plan.initial_design == 6
    outcome = outcome_of(store, "ended")
    assert [device.status for device in outcome.devices] == [SettingStatus.FINISHED] * 2
    targets = [target for device in outcome.devices for target in device.targets]
    after = [(target.met, target.verified_ms, target.reason) for target in targets]
    assert sorted(after, key=str) == sorted(((bool(met), ms, reason) for met, ms, reason in before), key=str)
    results = results_of(outcome, lambda device, target: None)
    assert results.status is run.status is RunStatus.PARTIAL
    assert {row.purpose for device in outcome.devices for row in device.rows} <= {
        "initial-design", "candidate", "verification",
    }  # fmt: skip
    assert [device.measurements for device in results.fleet] == [10, 10]
    store.close()


def test_a_run_that_ended_is_replayed(path: Path) -> None:
    feed = StoreFeed(MeasurementStore.open(path), "ended", wait=lambda _: None)
    update = feed.poll(0.0)
    store_events = {type(event) for event in update.events}
    assert {events.MeasurementTaken, events.WinnerVerified, events.TargetInfeasible} <= store_events
    for event in update.events:
        assert not isinstance(event, events.TargetInfeasible) or not event.reason.startswith("infeasible")
    assert update.end is RunStatus.PARTIAL
    feed.close()


def test_an_interrupted_run_is_resumed_to_its_end(path: Path) -> None:
    store = MeasurementStore.open(path)
    before = store.outcomes("interrupted")
    plan = settings_of(store.run("interrupted")).plan
    fleet = Simulation(plan, store=store, run_id="interrupted")
    for seed, name in enumerate(DEVICES):
        fleet.add(name, seed=seed)
    fleet.begin(resume=True)
    fleet.run()
    assert fleet.campaign.finish() is RunStatus.PARTIAL
    assert store.outcomes("interrupted")[: len(before)] == before
    assert len(store.outcomes("interrupted")) > len(before)
    counted = [device.measurements for device in outcome_of(store, "interrupted").devices]
    assert counted == [plan.budget] * 2, "what was measured before counts"
    statuses = {(winner.device, winner.target_ms): winner.status for winner in store.winners("interrupted")}
    assert len(statuses) == 2 * plan.targets.count
    assert all(status is TargetStatus.INFEASIBLE for (_, ms), status in statuses.items() if ms == 0.2)
    assert any(status is TargetStatus.MET for status in statuses.values())
    store.close()


def test_a_damaged_winner_costs_its_event_and_a_line(path: Path) -> None:
    store = MeasurementStore.open(path)
    with closing(sqlite3.connect(path)) as plain, plain:
        plain.execute("UPDATE winners SET sha256 = NULL WHERE run_id = 'ended' AND target_ms = 1.6 AND device = 'pi4'")
    feed = StoreFeed(store, "ended", wait=lambda _: None)
    update = feed.poll(0.0)
    verified = [event for event in update.events if isinstance(event, events.WinnerVerified)]
    assert [(event.device, event.target_ms) for event in verified] == [("pi4", 2.4), ("pi5", 1.6), ("pi5", 2.4)]
    assert update.snapshot is not None
    (line,) = update.snapshot.log
    assert "pi4/onnxruntime_cpu_1t_fp32 for 1.6 ms has no architecture, latency or hash" in line
    feed.close()
