"""`fleetnas portfolio` on a stored run: its table, its JSON, and what it refuses before it computes anything."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rigs.brokers import mosquitto
from rigs.command_line import fleetnas
from rigs.simulated_fleet import Simulation
from rigs.untrained_supernet import write_untrained

from fleetnas.coordinator.records.plan import CampaignPlan
from fleetnas.coordinator.records.targets import TargetRequest
from fleetnas.coordinator.store.store import MeasurementStore


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle and the store of a search of two devices."""
    folder = tmp_path_factory.mktemp("portfolio")
    write_untrained(folder / "digits.supernet")
    store = MeasurementStore.open(folder / "runs.sqlite")
    fleet = Simulation(
        CampaignPlan(targets=TargetRequest.parse("auto:3"), budget=16, wait_for=2, prior="default"), store=store
    )
    for seed, name in enumerate(("pi4", "pi5")):
        fleet.add(name, seed=seed)
    fleet.begin()
    fleet.run()
    fleet.campaign.finish()
    store.close()
    return folder


def test_table_json_and_file_agree(
    stored: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(stored)
    file = tmp_path / "portfolio.json"
    line = ("portfolio", "run-1", "--models", "2", "--store", "runs.sqlite")
    code, output, errors = fleetnas(capsys, *line, "-o", file)
    assert (code, errors) == (0, "")
    written = json.loads(file.read_text())
    assert len(written["models"]) <= 2
    assert len(written["served"]) == 6
    for served in written["served"]:
        assert served["latency_ms"] <= served["target_ms"]
        assert f"{served['latency_ms']:.4g}" in output
        assert served["known_by"] in output
    assert "2 models for 6 targets" in output
    assert "--verify --broker HOST" in output
    code, output, _ = fleetnas(capsys, *line, "--json")
    assert code == 0
    assert json.loads(output) == written
    accuracies = [point["mean_accuracy"] for point in written["curve"]]
    assert accuracies == sorted(accuracies)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--models", "0"), "give a number of at least 1"),
        (("--models", "2", "--broker", "localhost"), "only --verify measures on devices; leave out --broker"),
        (("--models", "2", "--devices", "pi4", "--verify"), "has no option --devices"),
        (("--models", "2", "--weights", "twice.json"), "names pi4 twice"),
        (("--models", "2", "--weights", "unknown.json"), "weights name pi9; did you mean pi5? the run has pi4, "),
        (("--models", "2", "--weights", "nowhere.json"), "nowhere.json"),
        (("--models", "2", "-o", "portfolio.csv"), ".json"),
        (("--models", "2", "--verify"), "broker"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(
    stored: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    complaint: str,
) -> None:
    monkeypatch.chdir(stored)
    (stored / "twice.json").write_text('{"pi4": 1, "pi4": 2}')
    (stored / "unknown.json").write_text('{"pi9": 1}')
    code, output, errors = fleetnas(capsys, "portfolio", "run-1", "--store", "runs.sqlite", *options)
    assert code == 2
    assert output == ""
    assert complaint in errors.replace("\n", " ")


def test_a_search_that_no_device_joined_leaves_none_to_choose_a_portfolio_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_untrained(tmp_path / "s.supernet")
    search = ("search", "--supernet", "s.supernet", "--targets", "5", "--models", "2", "--store", "runs.sqlite")
    with mosquitto(tmp_path) as broker:
        code, output, errors = fleetnas(capsys, *search, "--timeout", "1s", "--broker", str(broker.address))
    assert code == 1
    assert "no run is stored" in errors
    assert "portfolio" not in output + errors


def test_a_run_that_does_not_exist_is_named(
    stored: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(stored)
    code, _, errors = fleetnas(capsys, "portfolio", "run-9", "--models", "2", "--store", "runs.sqlite")
    assert code == 2
    assert "run-9" in errors
