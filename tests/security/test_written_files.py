"""Files and cells that are named after or filled with what devices say."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from rigs.hostile_fleet import ShippedModels
from rigs.simulated_fleet import HiddenDevice, SimulatedAgent, Simulation, measurement

from fleetnas.coordinator.app.run_artifacts import write_artifacts
from fleetnas.coordinator.records.plan import CampaignPlan
from fleetnas.coordinator.report.artifacts import MEASUREMENTS_FILE, RESULTS_FILE, folder_name, read_results
from fleetnas.coordinator.report.html import REPORT_FILE
from fleetnas.coordinator.store.measurement_table import csv_cell, plain_cell, read_measurements
from fleetnas.fleet_protocol.messages import Conditions, Measurement, RuntimeSetting
from fleetnas.fleet_protocol.orders import MeasureTask

PLAN = CampaignPlan(targets="auto:2", budget=10, initial_design=6, wait_for=1, grace_s=30, join_s=60, deadline_s=60)
FORMULAS = ("=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\n=1", "＝1", "＋1", "－1", "＠1")
TEXTS = (*FORMULAS, "=" * 32, "'", "'=1", ',;"\n', "{{7*7}}<script>", "", "performance")


def finished(fleet: Simulation, out: Path) -> Simulation:
    fleet.begin()
    fleet.run()
    assert fleet.campaign.finish() == "complete"
    assert write_artifacts(fleet.store, "run-1", out, fleet.models) == []
    return fleet


def test_an_agent_may_have_the_name_of_a_file(tmp_path: Path) -> None:
    names = [RESULTS_FILE, MEASUREMENTS_FILE, REPORT_FILE, "Results.JSON", "a" * 60, "r"]
    fleet = Simulation(PLAN.model_copy(update={"wait_for": len(names)}), models=ShippedModels())
    for seed, name in enumerate(names):
        fleet.add(name, seed=seed)
    finished(fleet, tmp_path)
    for device in read_results(tmp_path).fleet:
        for target in device.targets:
            assert target.model is not None
            assert (tmp_path / target.model).is_file()
    assert (tmp_path / REPORT_FILE).is_file()
    assert {name for name, _ in read_measurements(tmp_path / MEASUREMENTS_FILE)} == set(names)


def test_no_two_agents_share_a_folder() -> None:
    names = [RESULTS_FILE, "results.json_", "Results.json", MEASUREMENTS_FILE, REPORT_FILE, "pi"]
    assert len({folder_name(name) for name in names}) == len(names)


def test_a_setting_of_many_cores_is_taken_home(tmp_path: Path) -> None:
    fleet = Simulation(PLAN, models=ShippedModels())
    many = tuple(RuntimeSetting(affinity=tuple(range(first, first + 256))) for first in (0, 1))
    fleet.add("server", seed=0, settings=many)
    finished(fleet, tmp_path)
    kept = read_results(tmp_path).fleet
    assert len(kept) == 2
    assert all(target.model for device in kept for target in device.targets)
    # And the run is found again by its settings.
    fleet.begin(resume=True)
    fleet.run()
    assert fleet.campaign.finish() == "complete"


def test_settings_that_an_agent_announces_twice_count_once() -> None:
    fleet = Simulation(PLAN, models=ShippedModels())
    fleet.add("pi", seed=0, settings=(RuntimeSetting(), RuntimeSetting()))
    fleet.begin()
    fleet.run()
    assert fleet.campaign.finish() == "complete"
    assert len(fleet.campaign.setting_runs) == 1


class Saying(SimulatedAgent):
    """Says another of `TEXTS` with every measurement, wherever a text of its own goes into a table."""

    said = 0

    def _measure(self, order: MeasureTask) -> Measurement:
        device: HiddenDevice = self.devices[order.setting]
        conditions = Conditions(governor=TEXTS[self.said % len(TEXTS)])
        self.said += 1
        found = device.measure(order, self.clock.unix())
        return found.model_copy(update={"before": conditions, "after": conditions})


def test_texts_of_a_device_come_back_and_are_no_formulas(tmp_path: Path) -> None:
    fleet = Simulation(PLAN.model_copy(update={"budget": 30, "initial_design": 25}), models=ShippedModels())
    agent = fleet.take_in(Saying(fleet.broker, "pi", fleet.clock))
    finished(fleet, tmp_path)
    assert agent.said >= len(TEXTS)
    (rows,) = read_measurements(tmp_path / MEASUREMENTS_FILE).values()
    assert {row.measurement.after.governor for row in rows} == {text or None for text in TEXTS}
    with (tmp_path / MEASUREMENTS_FILE).open(newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert not [cell for cell in cells if cell.startswith(FORMULAS) and not _is_number(cell)]
    assert "<script>" not in (tmp_path / REPORT_FILE).read_text()


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(st.text(max_size=40))
def test_every_text_comes_back_from_a_cell(text: str) -> None:
    file = io.StringIO()
    csv.writer(file).writerow([csv_cell(text)])
    file.seek(0)
    read = next(csv.reader(io.StringIO(file.getvalue(), newline="")), [""])
    assert plain_cell(read[0]) == text
    assert not csv_cell(text).startswith(FORMULAS)


@pytest.mark.parametrize("value", ["", "=cmd", "'", " x", "a" * 65, "x\n", "ä", "\x1b[2J"])
def test_a_provider_that_no_runtime_has_is_refused(value: str) -> None:
    with pytest.raises(ValidationError):
        measurement(1.0, provider=value)


@pytest.mark.parametrize("fields", [{"median_ms": 1e7, "undisturbed_ms": 1e-3}, {"undisturbed_ms": 1e3}])
def test_a_slowdown_that_no_device_has_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="times undisturbed_ms"):
        measurement(1.0, **fields) if "median_ms" not in fields else measurement(**fields)
