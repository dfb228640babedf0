"""Given subnets from the command line to the file: real agents, one network fine-tuned or not, a rewritten card."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rigs import waiting
from rigs.process_fleet import QUICK, Fleet, events
from rigs.untrained_supernet import write_untrained

from fleetnas.coordinator.app.images import checked_images
from fleetnas.coordinator.app.request import ImageFolders
from fleetnas.coordinator.campaign.winner_builder import BundleWinnerBuilder
from fleetnas.coordinator.report.artifacts import WinnerCard
from fleetnas.coordinator.store.store import MeasurementStore
from fleetnas.supernet_export.bundle import SupernetBundle
from fleetnas.supernet_export.cutting import cut_bundle

pytestmark = pytest.mark.xdist_group("endtoend")


class Device:
    """This machine as a device alone, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.supernet = write_untrained(folder / "untrained.supernet")

    def measure(self, *arguments: str, out: str = "out") -> subprocess.CompletedProcess[str]:
        places = ("--store", str(self.folder / "runs.sqlite"), "--state-dir", str(self.folder / "state"))
        command = [sys.executable, "-c", "from fleetnas.coordinator.cli import main; main()", "measure", *arguments]
        return waiting.run(
            [*command, "--local", *places, "--out", str(self.folder / out), *QUICK],
            env={**os.environ, "OMP_NUM_THREADS": "1", "FLEETNAS_HOST_LOCK": str(self.folder / "lock")},
            start_new_session=True,
        )

    def targets(self, out: str = "out") -> list[dict[str, Any]]:
        results = json.loads((self.folder / out / "results.json").read_text())
        return [target for device in results["fleet"] for target in device["targets"]]

    def cards(self, out: str = "out") -> list[Path]:
        return sorted((self.folder / out).glob("*/*/*.json"))


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return Device(tmp_path)


def model_of(card: Path) -> bytes:
    return (card.parent / json.loads(card.read_text())["model"]).read_bytes()


def test_what_was_measured_is_the_file_that_ships(device: Device) -> None:
    settings = ("--setting", "onnxruntime", "--setting", "litert,precision=int8")
    ended = device.measure(str(device.supernet), "smallest", "random:3", "--target", "1000ms", *settings)
    assert ended.returncode == 0, ended.stderr
    assert len(device.targets()) == len(device.cards()) == 4
    store = MeasurementStore.open(device.folder / "runs.sqlite")
    (run,) = store.runs()
    by_devices = {found.outcome.model_sha256 for found in store.outcomes(run.run_id)}  # type: ignore[union-attr]
    store.close()
    for path in device.cards():
        card = WinnerCard.model_validate_json(path.read_text())
        assert card.sha256 == hashlib.sha256(model_of(path)).hexdigest()
        assert card.sha256 in by_devices
        assert path.stem == card.subnet
        assert (card.target_ms, card.accuracy_images) == (1000.0, 600)
    assert {json.loads(path.read_text())["model"].rpartition(".")[2] for path in device.cards()} == {"onnx", "tflite"}


def test_int8_is_calibrated_and_evaluated_on_the_images_that_it_is_given(device: Device) -> None:
    image = pytest.importorskip("PIL.Image")
    images, rng = device.folder / "images", np.random.default_rng(0)
    for label in range(10):
        (images / str(label)).mkdir(parents=True)
        for number in range(2):
            pixels = rng.integers(0, 255, (16, 16), dtype=np.uint8)
            image.fromarray(pixels).save(images / str(label) / f"{number}.png")
    given = ("--calibration-images", str(images), "--evaluation-images", str(images))
    ended = device.measure(str(device.supernet), "smallest", "--runtime", "litert", "--precision", "int8", *given)
    assert ended.returncode == 0, ended.stderr
    (path,) = device.cards()
    card = WinnerCard.model_validate_json(path.read_text())
    assert (card.setting.precision, card.accuracy_images) == ("int8", 20)
    bundle = SupernetBundle.open(device.supernet)
    given_images = checked_images(bundle, ImageFolders(images, images))
    assert card.architecture is not None
    model = BundleWinnerBuilder(bundle, *given_images).calibrate(card.architecture, card.setting)
    assert card.sha256 == model.sha256


def test_a_card_is_rewritten_with_a_network_that_was_cut_out(device: Device) -> None:
    assert device.measure(str(device.supernet), "largest", "--target", "1000").returncode == 0
    (card,) = device.cards()
    before = WinnerCard.model_validate_json(card.read_text())
    assert before.architecture is not None
    tuned = device.folder / "tuned.supernet"
    cut_bundle(
        SupernetBundle.open(write_untrained(device.folder / "other.supernet", seed=1)), before.architecture, tuned
    )

    ended = device.measure(str(tuned), "--card", str(card), out="tuned")
    assert ended.returncode == 0, ended.stderr
    assert f"{card} is rewritten" in ended.stdout
    after = WinnerCard.model_validate_json(card.read_text())
    assert after.sha256 == hashlib.sha256(model_of(card)).hexdigest() != before.sha256
    assert (after.target_ms, after.device, after.runtime) == (before.target_ms, before.device, before.runtime)
    assert after.supernet.sha256 == SupernetBundle.open(tuned).sha256 != before.supernet.sha256
    assert after.replaces is not None
    assert (after.replaces.sha256, after.replaces.accuracy) == (before.sha256, before.accuracy)
    (target,) = device.targets()
    assert target["model"] is None
    assert card.name in target["note"]
    (measured,) = device.targets("tuned")
    assert measured["verified_ms"] == after.verified_ms


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("{supernet}",), "holds many networks"),
        (("{supernet}", '{"ks": [9], "e": [3], "d": [2], "r": 8}'), "ks"),
        (("{supernet}", "smallest", "--target", "auto:2"), "--target auto:2"),
        (("{supernet}", "smallest", "--card", "{supernet}"), "is no model card"),
        (("{supernet}", "smallest", "--setting", "onnxruntime", "--threads", "2"), "leave out --runtime"),
        (("{supernet}", "smallest", "--devices", "pi4"), "leave out --devices"),
    ],
)
def test_what_cannot_be_measured_is_told_in_one_line(device: Device, arguments: tuple[str, ...], words: str) -> None:
    ended = device.measure(*(argument.replace("{supernet}", str(device.supernet)) for argument in arguments))
    assert ended.returncode == 2
    assert words in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_killed_coordinator_of_a_fleet_goes_on_where_it_was(fleet: Fleet) -> None:
    for name in ("one", "two"):
        fleet.agent(name)
    common = ("--broker", str(fleet.broker.address), "--store", str(fleet.folder / "runs.sqlite"), "--json")

    def measure(*options: str) -> subprocess.Popen[str]:
        return fleet.start("fleetnas", "measure", *options, *common, "--out", str(fleet.out), pipe=True)

    given = (str(fleet.supernet), "smallest", "largest")
    first = measure(*given, "--devices", "one,two", "--target", "1000", *QUICK)
    measured = 0
    for event in events(first):
        measured += event["event"] == "measurement"
        if measured == 3:
            os.kill(first.pid, signal.SIGKILL)
            break
    first.wait()
    before = set(fleet.stored())
    second = measure("--resume")
    happenings = list(events(second))
    assert waiting.ended(second) == 0, fleet.complaints()
    begun = next(event for event in happenings if event["event"] == "campaign_started")
    assert (begun["resumed"], len(begun["subnets"])) == (True, 2)
    after = fleet.stored()
    assert before <= set(after)
    assert len({key.task_id for key in after}) == len(after) == 2 * 2 * 3
    results = fleet.results()
    assert (results["status"], results["targets_met"], results["targets_asked"]) == ("complete", 4, 4)
