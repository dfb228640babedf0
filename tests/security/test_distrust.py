"""Leaving a device out of what is learned, from the command line."""

from __future__ import annotations

import functools
import io
import json
from pathlib import Path

import pytest
from rigs.command_line import fleetnas
from rigs.simulated_fleet import Simulation

from fleetnas.coordinator.app.compose import open_search
from fleetnas.coordinator.app.request import FleetAccess, NewRun, SearchRequest
from fleetnas.coordinator.records.plan import CampaignPlan, RunSettings
from fleetnas.coordinator.store.store import MeasurementStore
from fleetnas.coordinator.view.lines import LinesView
from fleetnas.fleet_protocol.transports.base import BrokerAddress
from fleetnas.supernet_export.export import export_digits

PLAN = CampaignPlan(targets="auto:2", budget=6, initial_design=4, wait_for=2)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store with a run of two devices."""
    path = tmp_path / "runs.sqlite"
    fleet = Simulation(PLAN, store=MeasurementStore.open(path))
    for seed in range(2):
        fleet.add(f"pi{seed}", seed=seed)
    fleet.begin()
    fleet.run()
    fleet.store.close()
    return path


def distrusted(path: Path) -> set[str]:
    opened = MeasurementStore.open(path)
    try:
        return opened.distrusted()
    finally:
        opened.close()


def test_a_device_is_distrusted_until_it_is_trusted_again(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = fleetnas(capsys, "devices", "--distrust", "pi1", "--distrust", "pi0", "--store", str(store))
    assert (code, err) == (0, "")
    assert "pi0, pi1" in out
    assert distrusted(store) == {"pi0", "pi1"}
    fleetnas(capsys, "devices", "--distrust", "pi1", "--store", str(store))  # once more changes nothing
    code, out, _ = fleetnas(capsys, "devices", "--trust", "pi0", "--store", str(store), "--json")
    assert code == 0
    assert json.loads(out)["distrusted"] == ["pi1"]
    assert distrusted(store) == {"pi1"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--distrust", "pi9"), "holds no device pi9"),
        (("--distrust", "pi0", "--trust", "pi0"), "both"),
        (("--distrust", "pi0", "--broker", "localhost"), "leave out --broker"),
        ((), "--distrust or --trust"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    store: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], words: str
) -> None:
    code, _, err = fleetnas(capsys, "devices", *options, "--store", str(store))
    assert code == 2
    assert words in err
    assert distrusted(store) == set()


def test_a_search_keeps_with_its_run_whom_it_leaves_out(store: Path, tmp_path: Path) -> None:
    export_digits(tmp_path / "digits.supernet")
    opened = MeasurementStore.open(store)
    opened.distrust(["pi1"])
    request = SearchRequest(
        store=str(store),
        devices_at=FleetAccess(BrokerAddress("127.0.0.1", 1)),  # nobody is there, and nobody is needed
        run=NewRun(tmp_path / "digits.supernet", PLAN.model_copy(update={"prior_without": ("pi0",)})),
    )
    running = open_search(request, functools.partial(LinesView, io.StringIO()), opened)
    kept = RunSettings.model_validate(opened.run(running.run_id).settings)
    running.close()
    assert kept.plan.prior_without == ("pi0", "pi1")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--supernet", "x.supernet", "--prior-without", "pi9"), "pi9"),
        (("--supernet", "x.supernet", "--prior-without", "pi0", "--prior", "default"), "learns from nobody"),
        (("--resume", "run-1", "--prior-without", "pi0"), "resumed run keeps"),
    ],
)
def test_leaving_out_where_nothing_is_learned_is_refused(
    store: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], words: str
) -> None:
    common = ("--broker", "localhost:1", "--targets", "3", "--store", str(store))
    code, _, err = fleetnas(capsys, "search", *common, *options)
    assert code == 2
    assert words in err
