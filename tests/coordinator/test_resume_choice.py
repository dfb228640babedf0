"""Which run `--resume` alone goes on with, and with which devices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rigs.simulated_fleet import Simulation
from rigs.store_examples import INFO, SETTING, run_record

from fleetnas.coordinator.app.local_device import LocalDevice
from fleetnas.coordinator.app.request import FleetAccess, ImageFolders, ResumedRun, SearchRequest
from fleetnas.coordinator.app.run_choice import claimed_run, resumed_settings
from fleetnas.coordinator.cli.connection import ConnectionOptions
from fleetnas.coordinator.cli.search.fleet import FleetOptions
from fleetnas.coordinator.cli.search.resuming import claim_resumed
from fleetnas.coordinator.records.events import CampaignStarted, DeviceJoined
from fleetnas.coordinator.records.plan import CampaignPlan, RunSettings
from fleetnas.coordinator.records.run_connection import RunConnection
from fleetnas.coordinator.records.statuses import RunStatus
from fleetnas.coordinator.records.stored import DeviceRecord, RunRecord
from fleetnas.coordinator.store.store import MeasurementStore
from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.fleet_protocol.transports.base import BrokerAddress


@pytest.fixture
def store(tmp_path: Path) -> Iterator[MeasurementStore]:
    opened = MeasurementStore.open(tmp_path / "runs.sqlite")
    yield opened
    opened.close()


def add_run(store: MeasurementStore, name: str, status: RunStatus, at_s: float, *, began: bool = True) -> None:
    store.create_run(run_record(name, at_s))
    if began:
        store.put_devices([DeviceRecord(name, "pi4", SETTING, INFO, "running", "", (), 0, None, "")])
    store.set_run_status(name, status)


@pytest.mark.parametrize("status", [RunStatus.RUNNING, RunStatus.INTERRUPTED])
def test_only_a_run_that_was_interrupted_is_chosen(store: MeasurementStore, status: RunStatus) -> None:
    add_run(store, "older", RunStatus.INTERRUPTED, 1.0)
    add_run(store, "stopped", status, 2.0)
    add_run(store, "lost-one", RunStatus.PARTIAL, 3.0)
    add_run(store, "ended", RunStatus.COMPLETE, 4.0)
    add_run(store, "met-none", RunStatus.FAILED, 5.0)
    add_run(store, "never-began", RunStatus.INTERRUPTED, 6.0, began=False)
    add_run(store, "killed-at-once", RunStatus.RUNNING, 7.0, began=False)
    assert claimed_run(store, "latest", "default").run_id == "stopped"
    store.set_run_status("stopped", RunStatus.COMPLETE)
    assert claimed_run(store, "latest", "default").run_id == "older"


def test_where_none_was_interrupted_the_latest_that_ended_is_named(store: MeasurementStore) -> None:
    with pytest.raises(UsageError, match="no interrupted run of fleet 'default' that nobody works on; `fleetnas runs`"):
        claimed_run(store, "latest", "default")
    add_run(store, "ended", RunStatus.COMPLETE, 1.0)
    add_run(store, "lost-one", RunStatus.PARTIAL, 2.0)
    with pytest.raises(UsageError, match=r"the latest that ended is lost-one \(partial\), see --resume RUN"):
        claimed_run(store, "latest", "default")
    with pytest.raises(UsageError, match="no interrupted run of fleet 'other' that nobody works on; `fleetnas runs`"):
        claimed_run(store, "latest", "other")
    assert claimed_run(store, "lost-one", "default").run_id == "lost-one"  # named, it is taken up


def test_without_a_fleet_the_latest_of_any_is_chosen(store: MeasurementStore) -> None:
    add_run(store, "ours", RunStatus.INTERRUPTED, 1.0)
    store.create_run(replace(run_record("theirs", 2.0), fleet="lab", status=RunStatus.INTERRUPTED))
    store.put_devices([DeviceRecord("theirs", "pi4", SETTING, INFO)])
    assert claimed_run(store, "latest", None).run_id == "theirs"
    assert claimed_run(store, "latest", "default").run_id == "ours"
    assert claimed_run(store, "our", None).run_id == "ours"  # a beginning is enough
    with pytest.raises(UsageError, match="no interrupted measurement that nobody works on"):
        claimed_run(store, "latest", None, "measure")


NO_OPTIONS: Any = SimpleNamespace(command=SimpleNamespace(params=[]))


def resumed_at(
    path: Path, connection: ConnectionOptions, local: LocalDevice | None = None
) -> FleetAccess | LocalDevice:
    found = claim_resumed(
        NO_OPTIONS, str(path), "latest", kind="search", connection=connection, fleet=FleetOptions(), local=local
    )
    found.store.close()
    return found.devices_at


def stored_run(path: Path, kept: RunConnection | None, fleet: str) -> None:
    opened = MeasurementStore.open(path)
    plan = CampaignPlan(targets="auto:2")
    settings = RunSettings(plan=plan, supernet_path="/s", design_space="digits", source="test", connection=kept)
    record = RunRecord("run-1", fleet, "s", "b" * 64, settings.model_dump(mode="json"), 1.0, RunStatus.INTERRUPTED)
    opened.create_run(record)
    opened.put_devices([DeviceRecord("run-1", "pi4", SETTING, INFO)])
    opened.close()


def test_a_run_of_a_fleet_needs_no_option(tmp_path: Path) -> None:
    access = FleetAccess(BrokerAddress.parse("fleet.example:1884"), "lab", mirror="https://m.example/x", share=True)
    stored_run(tmp_path / "s.sqlite", access.kept, "lab")
    found = resumed_at(tmp_path / "s.sqlite", ConnectionOptions())
    assert isinstance(found, FleetAccess)
    assert (str(found.broker), found.name, found.mirror, found.share) == (
        "fleet.example:1884", "lab", "https://m.example/x", True,
    )  # fmt: skip
    moved = resumed_at(tmp_path / "s.sqlite", ConnectionOptions(broker="new.example", fleet="lab"))
    assert isinstance(moved, FleetAccess)
    assert (str(moved.broker), moved.name) == ("new.example:1883", "lab")


def test_a_run_of_this_device_alone_needs_no_option(tmp_path: Path) -> None:
    stored_run(tmp_path / "s.sqlite", RunConnection(local=True, state_folder="/state"), "local")
    assert resumed_at(tmp_path / "s.sqlite", ConnectionOptions()) == LocalDevice((), Path("/state"))
    assert resumed_at(tmp_path / "s.sqlite", ConnectionOptions(), LocalDevice()) == LocalDevice()


def test_a_run_of_an_earlier_version_takes_what_is_configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored_run(tmp_path / "s.sqlite", None, "lab")
    with pytest.raises(UsageError, match="no broker is known"):
        resumed_at(tmp_path / "s.sqlite", ConnectionOptions())
    monkeypatch.setenv("FLEETNAS_BROKER", "configured.example")
    found = resumed_at(tmp_path / "s.sqlite", ConnectionOptions())
    assert isinstance(found, FleetAccess)
    assert (found.broker.host, found.name) == ("configured.example", "lab")


def interrupted(plan: CampaignPlan) -> Simulation:
    """A run on pi0 whose coordinator vanished."""
    fleet = Simulation(plan)
    fleet.add("pi0")
    fleet.begin()
    fleet.run(until=lambda: len(fleet.store.outcomes("run-1")) >= 4)
    fleet.vanish()
    return fleet


def test_a_device_that_was_not_in_the_run_is_left_out_and_told_of(caplog: pytest.LogCaptureFixture) -> None:
    fleet = interrupted(CampaignPlan(targets="auto:2", budget=10, initial_design=6))
    fleet.events.clear()
    fleet.add("pi9", seed=9)
    with caplog.at_level("INFO", logger="fleetnas.coordinator"):
        fleet.begin(resume=True)
        fleet.run()
    assert {device for device, _ in fleet.campaign.setting_runs} == {"pi0"}
    assert fleet.agents[-1].measured == []
    (said,) = [record.getMessage() for record in caplog.records if "pi9" in record.getMessage()]
    assert said.startswith("pi9 was not in run run-1, which goes on without it; start a new search for it, or add it ")
    assert said.endswith("with --resume run-1 --devices pi9")
    (started,) = [event for event in fleet.events if isinstance(event, CampaignStarted)]
    assert {label.partition("/")[0] for label in started.devices} == {"pi0"}
    assert fleet.campaign.finish() == "complete"


def test_one_that_is_named_takes_part(caplog: pytest.LogCaptureFixture) -> None:
    fleet = interrupted(CampaignPlan(targets="auto:2", budget=10, initial_design=6))
    fleet.add("pi9", seed=9)
    fleet.add("pi8", seed=8)
    fleet.plan = fleet.plan.model_copy(update={"devices": ("pi9",)})
    fleet.begin(resume=True)
    fleet.run()
    assert {device for device, _ in fleet.campaign.setting_runs} == {"pi0", "pi9"}
    assert [event.device for event in fleet.events if isinstance(event, DeviceJoined)] == ["pi0", "pi9"]
    assert fleet.campaign.finish() == "complete"


def test_naming_devices_adds_to_those_that_were_named(tmp_path: Path) -> None:
    plan = CampaignPlan(targets="auto:2", devices=("pi0", "pi1"))
    settings = RunSettings(plan=plan, supernet_path="/s", design_space="digits", source="test", out="/first")
    stored = RunRecord("run-1", "default", "s", "b" * 64, settings.model_dump(mode="json"), 1.0)
    fleet = FleetAccess(BrokerAddress("127.0.0.1"))
    run = ResumedRun("run-1", devices=("pi9", "pi0"))
    request = SearchRequest("", fleet, run, images=ImageFolders(evaluation=tmp_path))
    changed = resumed_settings(run, request, stored)
    assert changed.plan.devices == ("pi0", "pi1", "pi9")
    assert (changed.evaluation_images, changed.out) == (str(tmp_path), "/first")
    some = SearchRequest("", fleet, run, images=ImageFolders(some_classes=True))
    assert (settings.some_classes, resumed_settings(run, some, stored).some_classes) == (False, True)
    unchanged = ResumedRun("run-1")
    assert resumed_settings(unchanged, SearchRequest("", fleet, unchanged), stored) == settings
