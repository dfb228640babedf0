"""Values that were stored before they were bounded: a line, and everything else goes on."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from rigs.hostile_fleet import ShippedModels
from rigs.simulated_fleet import Simulation
from sqlalchemy import create_engine, text

from fleetnas.coordinator.app.run_artifacts import write_artifacts
from fleetnas.coordinator.monitoring.store_feed import StoreFeed
from fleetnas.coordinator.records.plan import CampaignPlan
from fleetnas.coordinator.report.artifacts import read_results
from fleetnas.coordinator.store.exported_fields import exported_rows
from fleetnas.coordinator.store.store import MeasurementStore
from fleetnas.coordinator.store.stored_devices import stored_devices

PLAN = CampaignPlan(targets="auto:2", budget=16, initial_design=10, wait_for=2, grace_s=30, join_s=60, deadline_s=60)

POISONS = (
    "undisturbed_half_width_percent = 1e200",
    "median_ms = 1e308, undisturbed_ms = 5e-324",
    "levels_ms = '[Infinity, NaN]', reference_ms = 1",
    """after = '{"temperature_c": 1e308}'""",
    "provider = ''",
    "times_us = '[1e400]'",
)


def interrupted(path: Path) -> Simulation:
    fleet = Simulation(PLAN, models=ShippedModels(), store=MeasurementStore.open(path))
    for seed in range(2):
        fleet.add(f"pi{seed}", seed=seed)
    fleet.begin()
    fleet.run(until=lambda: len(fleet.store.outcomes("run-1")) >= 16)
    fleet.vanish()
    return fleet


def poison(path: Path, statement: str) -> None:
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        connection.execute(text("PRAGMA ignore_check_constraints = ON"))
        connection.exec_driver_sql(statement)
    engine.dispose()


def test_stored_measurements_beyond_their_bounds_are_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "runs.sqlite"
    fleet = interrupted(path)
    for number, change in enumerate(POISONS, 1):  # its first measurement stands: it is no device that fails always
        chosen = (
            f"SELECT outcome_id FROM outcomes JOIN tasks USING (task_id) WHERE device = 'pi0' LIMIT 1 OFFSET {number}"
        )
        poison(path, f"UPDATE measurements SET {change} WHERE outcome_id IN ({chosen})")
    fleet.begin(resume=True)
    lines = [line for line in fleet.campaign.log if "is skipped" in line]
    assert len(lines) == len(POISONS), lines
    assert all(line.startswith("pi0/") for line in lines)
    fleet.run()
    assert fleet.campaign.finish() in ("complete", "partial")
    assert {setting_run.status for setting_run in fleet.campaign.setting_runs.values()} == {"finished"}
    out = tmp_path / "out"
    assert write_artifacts(fleet.store, "run-1", out, fleet.models) == []
    kept = {device.device: device for device in read_results(out).fleet}
    assert all(target.model for target in kept["pi1"].targets)
    assert sum(failure.reason == "bad_output" for failure in kept["pi0"].failures) == len(POISONS)
    with caplog.at_level(logging.WARNING, logger="fleetnas.coordinator"):
        rows = list(exported_rows(fleet.store))
    assert {row["device"] for row in rows} == {"pi0", "pi1"}
    assert sum("is skipped" in record.getMessage() for record in caplog.records) == len(POISONS)
    assert StoreFeed(fleet.store, "run-1").poll(0).snapshot is not None
    stored_devices(fleet.store, fleet.space, 1e12)


@pytest.mark.parametrize(
    "info",
    [
        """replace(info, '"gemm_gflops":null', '"gemm_gflops":1e400')""",
        """json_set(info, '$.profile.memory_mb', -1)""",
        """'{}'""",
    ],
)
def test_a_stored_profile_beyond_its_bounds_costs_the_profile_alone(info: str, tmp_path: Path) -> None:
    path = tmp_path / "runs.sqlite"
    fleet = interrupted(path)
    poison(path, f"UPDATE devices SET info = {info} WHERE device = 'pi0'")
    fleet.begin(resume=True)
    fleet.run()
    assert fleet.campaign.finish() == "complete"
    assert {device.device for device in fleet.store.devices("run-1")} == {"pi0", "pi1"}


def test_a_stored_setting_that_cannot_be_read_takes_no_part(tmp_path: Path) -> None:
    path = tmp_path / "runs.sqlite"
    fleet = interrupted(path)
    poison(path, "UPDATE devices SET setting = '{\"threads\": 0}' WHERE device = 'pi0'")
    fleet.begin(resume=True)
    assert {setting_run.device for setting_run in fleet.campaign.setting_runs.values()} == {"pi1"}
    fleet.run()
    assert fleet.campaign.finish() == "complete"


def test_a_stored_error_that_is_no_number_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "runs.sqlite"
    fleet = interrupted(path)
    fleet.begin(resume=True)
    fleet.run()
    fleet.campaign.finish()
    poison(path, "UPDATE devices SET learning = '[[3, NaN, NaN, 3], [8, 2.5, 0.9, 8]]' WHERE device = 'pi0'")
    out = tmp_path / "out"
    write_artifacts(fleet.store, "run-1", out, fleet.models)
    kept = {device.device: device for device in read_results(out).fleet}
    assert [point.mape_percent for point in kept["pi0"].learning] == [2.5]
