"""A campaign of given subnets on simulated devices: what is dispatched, stored, resumed and shown."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rigs.simulated_fleet import SPACE, Simulation, StandInModels

from fleetnas.coordinator.campaign.winner_builder import CalibratedModel
from fleetnas.coordinator.monitoring.store_feed import StoreFeed
from fleetnas.coordinator.records import events
from fleetnas.coordinator.records.plan import CampaignPlan, kind_of, settings_of
from fleetnas.coordinator.records.setting_filter import SettingFilter
from fleetnas.coordinator.records.statuses import RunStatus, SettingStatus
from fleetnas.coordinator.records.targets import TargetRequest
from fleetnas.coordinator.report.conversion import results_of
from fleetnas.coordinator.report.stored_outcome import outcome_of, stored_totals
from fleetnas.coordinator.store.store import MeasurementStore
from fleetnas.coordinator.tuning.subnet_tuner import REPEATS
from fleetnas.coordinator.view import wording
from fleetnas.coordinator.view.lines import event_lines
from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.fleet_protocol.messages import RuntimeSetting

SUBNETS = tuple(SPACE.decode(SPACE.sample(2, np.random.default_rng(5))))
SETTINGS = (RuntimeSetting(), RuntimeSetting(precision="int8"))


def plan(target: str | None = None, **fields: Any) -> CampaignPlan:
    targets = TargetRequest.parse(target) if target is not None else TargetRequest()
    fields = {"architectures": SUBNETS} | fields
    return CampaignPlan(targets=targets, budget=REPEATS * len(fields["architectures"]), **fields)


def measured(plan: CampaignPlan, **agent: Any) -> Simulation:
    fleet = Simulation(plan)
    for seed, name in enumerate(("pi4", "pi5")):
        fleet.add(name, seed=seed, settings=SETTINGS, **agent)
    fleet.begin()
    return fleet


def test_every_subnet_is_verified_on_every_setting() -> None:
    fleet = measured(plan())
    fleet.run()
    assert fleet.campaign.finish() is RunStatus.COMPLETE
    for agent in fleet.agents:
        counts = Counter(agent.measured)
        assert counts == {(setting, subnet, True): REPEATS for setting in SETTINGS for subnet in SUBNETS}
    outcome = outcome_of(fleet.store, fleet.run_id)
    results = results_of(outcome, lambda device, target: None)
    assert (results.strategy, results.targets_met, results.targets_asked) == ("measure", 8, 8)
    for device in results.fleet:
        assert [target.subnet for target in device.targets] == [subnet.fingerprint for subnet in SUBNETS]
        assert {target.target_ms for target in device.targets} == {None}
        assert all(target.met and target.sha256 and target.accuracy for target in device.targets)
        assert device.measurements == REPEATS * len(SUBNETS)
    stored = {task.task_id: task for task in fleet.store.tasks(fleet.run_id)}
    for found in fleet.store.outcomes(fleet.run_id):
        assert getattr(found.outcome, "model_sha256", None) == stored[found.key.task_id].model_sha256


@pytest.mark.parametrize(("target", "status"), [("1000", RunStatus.COMPLETE), ("0.001", RunStatus.FAILED)])
def test_a_target_is_met_or_missed_by_all(target: str, status: RunStatus) -> None:
    fleet = measured(plan(target))
    fleet.run()
    assert fleet.campaign.finish() is status
    winners = fleet.store.winners(fleet.run_id)
    assert len(winners) == 8
    assert {(winner.target_ms, winner.met) for winner in winners} == {(float(target), status is RunStatus.COMPLETE)}


def test_a_subnet_that_a_setting_cannot_run_costs_its_line() -> None:
    fleet = measured(plan("1000"))
    for agent in fleet.agents:
        agent.fails = lambda task: (
            "out_of_memory" if task.architecture == SUBNETS[0] and task.setting.precision == "int8" else None
        )
    fleet.run()
    assert fleet.campaign.finish() is RunStatus.PARTIAL
    missed = [winner for winner in fleet.store.winners(fleet.run_id) if not winner.met]
    assert {(winner.subnet, winner.setting_label) for winner in missed} == {(SUBNETS[0].fingerprint, SETTINGS[1].label)}
    assert all("out_of_memory" in winner.reason for winner in missed)


class UncalibratedModels(StandInModels):
    """Makes no int8 file of the first subnet."""

    def calibrate(self, architecture: Architecture, setting: RuntimeSetting) -> CalibratedModel:
        if architecture == SUBNETS[0] and setting.precision == "int8":
            raise UsageError("cat.png cannot be read as an image; remove it")
        return super().calibrate(architecture, setting)


@pytest.mark.parametrize("subnets", [SUBNETS, SUBNETS[:1]])
def test_a_subnet_without_a_file_costs_its_line(
    subnets: tuple[Architecture, ...], caplog: pytest.LogCaptureFixture
) -> None:
    fleet = Simulation(plan("1000", architectures=subnets), models=UncalibratedModels())
    fleet.add("pi4", settings=SETTINGS)
    fleet.begin()
    fleet.run()
    assert fleet.campaign.finish() is RunStatus.PARTIAL
    assert {run.status for run in fleet.campaign.setting_runs.values()} == {SettingStatus.FINISHED}
    missed = [winner for winner in fleet.store.winners(fleet.run_id) if not winner.met]
    assert [(winner.subnet, winner.setting_label) for winner in missed] == [(SUBNETS[0].fingerprint, SETTINGS[1].label)]
    assert missed[0].reason == "its file cannot be made: cat.png cannot be read as an image; remove it"
    assert len(fleet.store.winners(fleet.run_id)) == 2 * len(subnets)
    assert caplog.records == []


def test_only_the_settings_asked_for_take_part() -> None:
    fleet = measured(plan(settings=SettingFilter(precision="int8")))
    fleet.run()
    assert {setting.precision for agent in fleet.agents for setting, *_ in agent.measured} == {"int8"}
    assert len(fleet.campaign.setting_runs) == 2


def test_a_setting_that_nobody_offers_is_an_error_that_names_the_offered_ones() -> None:
    fleet = measured(plan(settings=SettingFilter(runtime="litert", precision="int8")))
    with pytest.raises(UsageError, match=r"runtime litert, precision int8; offered are pi4/.*, pi5/"):
        fleet.run()


def test_an_absent_device_is_named() -> None:
    fleet = measured(plan(devices=("pi4", "pi6"), join_s=20.0))
    with pytest.raises(UsageError, match="pi6 did not appear after 20 s"):
        fleet.run()


def test_a_killed_coordinator_ends_as_it_would_have_and_measures_nothing_twice() -> None:
    whole = measured(plan("1000"))
    whole.run()
    whole.campaign.finish()
    fleet = measured(plan("1000"))
    for stored in (3, 9, 14):
        fleet.run(until=lambda stored=stored: len(fleet.store.outcomes(fleet.run_id)) >= stored)  # type: ignore[misc]
        fleet.broker.cut(fleet.client_id)
        fleet.begin(resume=True)
    fleet.run()
    assert fleet.campaign.finish() is RunStatus.COMPLETE
    assert fleet.store.winners(fleet.run_id) == whole.store.winners(whole.run_id)
    assert len(fleet.store.tasks(fleet.run_id)) == 8 * REPEATS


def test_a_stored_run_is_told_from_a_search(tmp_path: Path) -> None:
    fleet = measured(plan("20"))
    fleet.store = MeasurementStore.open(f"sqlite:///{tmp_path / 'runs.sqlite'}")
    fleet.begin()
    run = fleet.store.run(fleet.run_id)
    assert kind_of(run) == "measure"
    assert settings_of(run).plan == fleet.plan
    fleet.store.close()


def test_what_views_are_told_of_it() -> None:
    fleet = measured(plan())
    fleet.run()
    live = fleet.campaign.snapshot(0.0)
    fleet.campaign.finish()
    totals = fleet.campaign.totals
    assert totals == stored_totals(fleet.store, fleet.run_id, fleet.plan.targets_asked)
    assert wording.targets_met(totals) == "8 of 8 subnets measured"
    feed = StoreFeed(fleet.store, fleet.run_id, wait=lambda _: None)
    replayed = feed.poll(0.0)
    assert replayed.snapshot is not None
    for device, stored in zip(live.devices, replayed.snapshot.devices, strict=True):
        assert device.targets == stored.targets
        assert device.measurements == stored.measurements == device.budget
    lines = [line for event in fleet.events for line in event_lines(event)]
    (begun,) = (line for line in lines if line.startswith("run run-1 starts"))
    assert all(subnet.fingerprint in begun for subnet in SUBNETS)
    assert sum(f"subnet {SUBNETS[0].fingerprint} measured" in line for line in lines) == 4
    assert any("8 of 8 subnets measured" in line for line in lines)
    verified = [event for event in fleet.events if isinstance(event, events.WinnerVerified)]
    assert {event.subnet for event in verified} == {subnet.fingerprint for subnet in SUBNETS}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"targets": "auto:4", "architectures": SUBNETS}, "one target"),
        ({"targets": "5,10", "architectures": SUBNETS}, "one target"),
        ({"targets": TargetRequest()}, "a search needs targets"),
    ],
)
def test_plans_that_are_neither_search_nor_measurement_are_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        CampaignPlan(**fields)
