"""`fleetnas finetune`: what it prints, what it refuses, and that a killed one is resumed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rigs.command_line import fleetnas
from rigs.outcome_examples import artifacts, campaign_outcome, device_outcome
from rigs.striped_images import write_images, write_supernet

from fleetnas.coordinator.cli.fine_tuning_view import FineTuningLines, duration
from fleetnas.coordinator.report.artifacts import read_results
from fleetnas.fleet_protocol.messages import Precision, RuntimeSetting
from fleetnas.supernet_export.bundle import SupernetBundle
from fleetnas.supernet_export.training.fine_tuning_step import FineTuningStep

pytest.importorskip("torch")


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A supernet, and its images to train and to validate on."""
    folder = tmp_path_factory.mktemp("room")
    write_supernet(folder / "all.supernet")
    write_images(folder / "train", 8)
    write_images(folder / "val", 4, seed=1)
    return folder


def _arguments(room: Path, output: Path, architecture: str = "smallest", *more: str, epochs: int = 1) -> list[str]:
    where = ["--bundle", str(room / "all.supernet"), "--images", str(room / "train"), "-o", str(output)]
    training = ["--batch-size", "8"] if epochs else []
    return ["finetune", architecture, *where, "--epochs", str(epochs), *training, *more]


def test_a_card_is_fine_tuned_and_its_bundle_evaluated(
    room: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = SupernetBundle.open(room / "all.supernet").space
    architecture = space.decode(space.smallest())[0]
    card = tmp_path / "20ms.json"
    supernet = {"name": "earlier.supernet", "sha256": "a" * 64}
    card.write_text(json.dumps({"supernet": supernet, "architecture": architecture.model_dump(mode="json")}))
    output = tmp_path / "one.supernet"
    code, out, err = fleetnas(capsys, *_arguments(room, output, str(card), "--val", str(room / "val")))
    assert code == 0
    assert err.startswith("note: the card is of a subnet of earlier.supernet, SHA-256 aaaaaaaaaaaa..., and")
    lines = out.splitlines()
    assert "checking images: 24 images" in lines
    assert "training: 1 epoch of 3 steps" in lines
    assert [line for line in lines if line.startswith("epoch 1/1: loss ") and line.endswith(" 0:00 left")]
    assert [line for line in lines if line.startswith("the teacher: top-1 ")]
    before_after = [line for line in lines if line.startswith("top-1 before ")]
    assert len(before_after) == 1
    assert lines[-1].endswith(f"fleetnas measure {output} --local")  # no winner's card, though an architecture is in it
    after = float(before_after[0].split()[-2])
    code, out, _ = fleetnas(
        capsys, "evaluate", str(output), "smallest", "--images", str(room / "val"), "--json",
        "--calibration-images", str(room / "train"),
    )  # fmt: skip
    assert code == 0
    found = json.loads(out)
    assert found["architecture"] == architecture.model_dump(mode="json")
    assert round(100 * found["accuracy"], 2) == after
    assert round(100 * found["predicted_accuracy"], 2) == after


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_next_command_names_the_card(
    room: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], precision: Precision
) -> None:
    space = SupernetBundle.open(room / "all.supernet").space
    setting = RuntimeSetting(precision=precision)
    device = replace(device_outcome("board-a", targets_ms=(5.0,)), setting=setting)
    smallest = space.decode(space.smallest())[0]
    device = replace(device, targets=tuple(replace(target, architecture=smallest) for target in device.targets))
    artifacts(tmp_path, campaign_outcome(device))
    card, output = tmp_path / "board-a" / setting.label / "5ms.json", tmp_path / "one.supernet"
    code, out, err = fleetnas(capsys, *_arguments(room, output, str(card), epochs=0))
    assert code == 0, err
    images = f" --calibration-images {room / 'train'}" if precision == "int8" else ""
    assert out.splitlines()[-1].endswith(f"fleetnas measure {output} --card {card}{images} --local")


def test_ctrl_c_before_a_step_is_saved_does_not_offer_to_resume(room: Path, tmp_path: Path) -> None:
    output = tmp_path / "one.supernet"
    arguments = _arguments(room, output, epochs=1000)
    command = [sys.executable, "-c", "from fleetnas.coordinator.cli import main; main()", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("checking images"):
                process.send_signal(signal.SIGINT)
                break
        _, err = process.communicate()
    assert process.returncode == 130
    assert err.splitlines()[-1] == "interrupted before a step was saved: give the same command to start again"
    assert list(tmp_path.iterdir()) == []


def test_json_is_one_object_and_nothing_else(room: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "one.supernet"
    code, out, err = fleetnas(capsys, *_arguments(room, output, "random:1", "--json", "--teacher", "none"))
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["sha256"] == SupernetBundle.open(output).sha256
    assert found["accuracy"] is None
    assert found["teacher_accuracy"] is None
    assert found["bytes"] == output.stat().st_size


def test_a_killed_training_is_resumed_to_the_same_bundle(
    room: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    epochs = ("--epochs", "12", "--seed", "3")
    output = tmp_path / "one.supernet"
    arguments = _arguments(room, output, "smallest", *epochs)
    command = [sys.executable, "-c", "from fleetnas.coordinator.cli import main; main()", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("epoch 2/12"):
                process.send_signal(signal.SIGKILL)
                break
    assert process.returncode == -signal.SIGKILL
    assert not output.exists()
    code, _, err = fleetnas(capsys, *arguments)
    assert code == 2
    assert "holds an interrupted training; go on with it with --resume" in err
    code, out, _ = fleetnas(capsys, *arguments, "--resume")
    assert code == 0
    assert "epoch 1/12" not in out
    assert ", resumed after " in out
    whole = tmp_path / "whole.supernet"
    code, out, _ = fleetnas(capsys, *_arguments(room, whole, "smallest", *epochs))
    assert code == 0
    assert whole.read_bytes() == output.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.supernet", "whole.supernet"]


def test_a_bundle_of_one_network_can_be_fine_tuned_again(
    room: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "one.supernet", tmp_path / "two.supernet"
    assert fleetnas(capsys, *_arguments(room, first, "smallest", epochs=0))[0] == 0
    again = ["finetune", "smallest", "--bundle", str(first), "--images", str(room / "train"), "-o", str(second)]
    again += ["--epochs", "1"]
    code, _, err = fleetnas(capsys, *again)
    assert code == 2
    assert "one network, which cannot teach itself" in err
    assert fleetnas(capsys, *again, "--teacher", str(room / "all.supernet"))[0] == 0
    assert SupernetBundle.open(second).manifest.provenance.sha256 == SupernetBundle.open(first).sha256


def test_targets_are_met_or_not_by_the_one_network(
    room: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "one.supernet"
    assert fleetnas(capsys, *_arguments(room, output, "smallest", "--val", str(room / "val"), epochs=0))[0] == 0
    search = ["search", "--supernet", str(output), "--local", "--store", str(tmp_path / "store.sqlite")]
    search += ["--state-dir", str(tmp_path / "state"), "--out", str(tmp_path / "results"), "--budget", "3"]
    search += ["--runtime", "onnxruntime", "--threads", "1", "--min-time", "0.01", "--min-runs", "3", "--warmup", "0"]
    code, _, err = fleetnas(capsys, *search, "--targets", "auto:3")
    assert code == 2
    assert "one network, whose latency is one number, so that auto:3 has no range to span" in err
    code, out, _ = fleetnas(capsys, *search, "--targets", "0.000001,10000")
    assert code == 1
    assert "1 of 2 targets met" in out
    results = read_results(tmp_path / "results")
    impossible, easy = results.fleet[0].targets
    assert not impossible.met
    assert easy.met
    space = SupernetBundle.open(output).space
    assert easy.architecture == space.decode(space.smallest())[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["smallest", "--images", "{room}/nothing"], "there is no folder"),
        (["nothing.json"], "cannot be read (it is no JSON, and no such file exists)"),
        (['{"r": 16, "ks": [3, 3], "e": [2, 2], "d": [1, 1]}'], "takes 4 entries in 'ks', found 2"),
        (["smallest", "-o", "{room}/all.supernet"], "exists already; give another name, or delete it first"),
        (["smallest", "-o", "{out}/one.onnx"], "with this suffix, such as one.supernet"),
        (["smallest", "--teacher", "best"], "--teacher best is neither largest nor none"),
        (["smallest", "--batch-size", "1"], "batch-size"),
        (["smallest", "--learning-rate", "nan"], "learning-rate"),
    ],
)
def test_wrong_use_is_refused_in_one_line(
    change: list[str], words: str, room: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = [each.format(room=room, out=tmp_path) if "{r" in each or "{o" in each else each for each in change]
    code, out, err = fleetnas(capsys, *_arguments(room, tmp_path / "one.supernet", *changed))
    assert code in (1, 2)
    assert words in err
    assert out == ""
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_a_supernet_that_is_not_digits_needs_images(
    room: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["finetune", "smallest", "--bundle", str(room / "all.supernet"), "-o", str(tmp_path / "one.supernet")]
    code, _, err = fleetnas(capsys, *arguments)
    assert code == 2
    assert "is a supernet for patterns; give --images DIR to train on" in err


def test_lines_tell_the_time_left_from_the_steps_of_this_process(capsys: pytest.CaptureFixture[str]) -> None:
    now = [100.0]
    lines = FineTuningLines(clock=lambda: now[0])
    lines.trains(2, 100, 50)
    for step, at in ((51, 101.0), (80, 130.0), (90, 131.0), (100, 150.0)):
        now[0] = at
        lines.trained(FineTuningStep(1, 2, step, 100, 0.5, 0.25))
    assert capsys.readouterr().out.splitlines() == [
        "training: 2 epochs of 100 steps, resumed after 50",
        "epoch 1/2, step 80/100: loss 0.500, 25.0 % of training views right, 0:30 so far, 2:00 left",
        "epoch 1/2: loss 0.500, 25.0 % of training views right, 0:50 so far, 1:40 left",
    ]
    assert duration(3725.2) == "1:02:05"
