"""The files that winners ship as, in a campaign over agents that measure exactly these."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rigs.measuring_device import MeasuringDevice
from rigs.simulated_fleet import Simulation, StandInModels

pytest.importorskip("sklearn")

from fleetnas.coordinator.campaign.winner_builder import BundleWinnerBuilder, CalibratedModel
from fleetnas.coordinator.records.plan import CampaignPlan
from fleetnas.coordinator.report.stored_outcome import outcome_of
from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.fleet_protocol.messages import RuntimeSetting
from fleetnas.supernet_export.bundle import SupernetBundle
from fleetnas.supernet_export.evaluation.classifier import evaluate, is_tflite
from fleetnas.supernet_export.evaluation.images import DigitsImages
from fleetnas.supernet_export.export import export_digits

LITERT, LITERT_INT8 = (RuntimeSetting(runtime="litert", precision=precision) for precision in ("fp32", "int8"))


@pytest.fixture
def bundle(tmp_path: Path) -> SupernetBundle:
    export_digits(tmp_path / "digits.supernet")
    return SupernetBundle.open(tmp_path / "digits.supernet")


@pytest.fixture
def models(bundle: SupernetBundle) -> BundleWinnerBuilder:
    return BundleWinnerBuilder(bundle, DigitsImages("calibration"), DigitsImages("test"))


def campaign(models: BundleWinnerBuilder, settings: tuple[RuntimeSetting, ...]) -> Simulation:
    fleet = Simulation(CampaignPlan(targets="auto:1", budget=8, initial_design=6), models=models)
    agent = fleet.add("pi", settings=settings)
    agent.devices = {setting: MeasuringDevice(models, setting) for setting in settings}
    fleet.begin()
    fleet.run()
    assert fleet.campaign.finished
    return fleet


def test_every_winner_has_the_accuracy_of_its_own_file(models: BundleWinnerBuilder) -> None:
    pytest.importorskip("ai_edge_litert.interpreter")
    fleet = campaign(models, (LITERT, LITERT_INT8))
    for setting_run in fleet.campaign.setting_runs.values():
        (state,) = setting_run.search.targets
        assert state.status == "met"
        accuracy, images = setting_run.accuracy_of(state.architecture)
        assert images == 600
        assert state.architecture is not None
        assert is_tflite(models.file(models.calibrate(state.architecture, setting_run.setting)))
        as_onnx = models.accuracy(models.calibrate(state.architecture, RuntimeSetting()))
        assert as_onnx is not None
        assert abs(accuracy - as_onnx[0]) <= (0.002 if setting_run.setting == LITERT else 0.015)


def test_a_winner_is_calibrated_and_evaluated_once_whichever_device_it_is_for(
    bundle: SupernetBundle, models: BundleWinnerBuilder
) -> None:
    (architecture,) = bundle.space.decode(bundle.space.smallest())
    two_threads = RuntimeSetting(threads=2)
    assert not models.calibrates_at_once(architecture, RuntimeSetting())
    model = models.calibrate(architecture, RuntimeSetting())
    assert models.calibrates_at_once(architecture, two_threads)
    assert models.calibrate(architecture, two_threads) is model
    assert not models.calibrates_at_once(architecture, LITERT)
    assert not models.evaluates_at_once(model)
    accuracy = models.accuracy(model)
    assert accuracy is not None
    assert models.evaluates_at_once(model)
    assert models.accuracy(model) == accuracy
    assert models.answers(model, "evaluation") is models.answers(model, "evaluation")


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_evaluate_takes_a_runtime_and_a_precision(tmp_path: Path, precision: str) -> None:
    pytest.importorskip("ai_edge_litert.interpreter")
    export_digits(tmp_path / "digits.supernet")
    arguments = ["evaluate", "digits.supernet", "smallest", "--runtime", "litert", "--precision", precision, "--json"]
    found = json.loads(
        subprocess.run(
            [
                sys.executable,
                "-c",
                "from fleetnas.coordinator.cli import main; main()",
                *arguments,
                "-o",
                "subnet.tflite",
            ],
            check=True,
            capture_output=True,
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        ).stdout
    )
    file = (tmp_path / "subnet.tflite").read_bytes()
    assert is_tflite(file)
    assert hashlib.sha256(file).hexdigest() == found["sha256"]
    assert (found["runtime"], found["precision"]) == ("litert", precision)
    test = DigitsImages("test")
    assert found["accuracy"] == evaluate(file, test.images(found["architecture"]["r"]), test.labels)


def test_without_the_runtime_the_latency_stands_and_the_log_says_why(
    models: BundleWinnerBuilder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for package in ("ai_edge_litert", "tflite_runtime"):
        monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    with caplog.at_level("INFO", logger="fleetnas.coordinator"):
        fleet = campaign(models, (LITERT,))
    (setting_run,) = fleet.campaign.setting_runs.values()
    assert [state.status for state in setting_run.search.targets] == ["met"]
    assert setting_run.accuracies == {}
    said = [record.getMessage() for record in caplog.records if "no accuracy for winner" in record.getMessage()]
    assert len(said) == 1
    assert "-m pip install 'ai-edge-litert>=" in said[0]


@pytest.mark.parametrize(
    "trouble",
    [
        UsageError("images/3/1.png cannot be read as an image"),
        FileNotFoundError(2, "gone", "images"),
        MemoryError(),
        ZeroDivisionError("odd"),
    ],
)
def test_whatever_keeps_a_winner_from_being_evaluated_its_latency_stands(
    trouble: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    class Unreadable(StandInModels):
        def evaluates_at_once(self, model: CalibratedModel) -> bool:
            return False

        def accuracy(self, model: CalibratedModel) -> tuple[float, int] | None:
            raise trouble

    fleet = Simulation(CampaignPlan(targets="auto:2", budget=8, initial_design=6), models=Unreadable())
    fleet.add("pi0")
    fleet.begin()
    with caplog.at_level("INFO", logger="fleetnas.coordinator"):
        fleet.run()
    assert fleet.campaign.finish() == "complete"
    (device,) = outcome_of(fleet.store, "run-1").devices
    assert [(target.met, target.accuracy) for target in device.targets] == [(True, None)] * 2
    said = [record.getMessage() for record in caplog.records if "no accuracy for winner" in record.getMessage()]
    assert said
    shown = "images: gone" if isinstance(trouble, FileNotFoundError) else type(trouble).__name__
    assert all(shown in line or str(trouble) in line for line in said)
