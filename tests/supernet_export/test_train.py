"""`fleetnas train` from images to a bundle, in real processes where they are killed or train together."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

torch = pytest.importorskip("torch")

from rigs.command_line import fleetnas  # noqa: E402
from rigs.small_images import write_images  # noqa: E402
from rigs.waiting import outputs, until  # noqa: E402
from safetensors.numpy import load_file  # noqa: E402

from fleetnas.fleet_protocol.errors import TrainingError  # noqa: E402
from fleetnas.supernet_export.bundle import SupernetBundle  # noqa: E402
from fleetnas.supernet_export.checkpoints.reader import read_checkpoint  # noqa: E402
from fleetnas.supernet_export.export import export_state_dict  # noqa: E402
from fleetnas.supernet_export.spaces.digits import DigitsSpace  # noqa: E402
from fleetnas.supernet_export.training.batches import MemoryBatches  # noqa: E402
from fleetnas.supernet_export.training.checkpoint import RunFolder  # noqa: E402
from fleetnas.supernet_export.training.elastic import ElasticMBConvNet  # noqa: E402
from fleetnas.supernet_export.training.result import read_draft  # noqa: E402
from fleetnas.supernet_export.training.schedule import Phase  # noqa: E402
from fleetnas.supernet_export.training.trainer import Recipe, Trainer  # noqa: E402

OPTIONS = {
    "stem": {"width": 8},
    "first_block": {"width": 8},
    "stages": [{"width": 8}, {"width": 16, "stride": 2, "squeeze": True}],
    "head": {"expand_width": 32, "features": 32},
    "kernels": [3, 5],
    "expands": [2, 3],
    "depths": [1, 2],
}


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    write_images(folder / "train", 8)
    write_images(folder / "val", 4, seed=1)
    return folder


def arguments(images: Path, out: Path, *more: str, epochs: int = 3) -> list[str]:
    data = ["train", str(images / "train"), "--val", str(images / "val"), "--out", str(out)]
    sizes = ["--resolutions", "12,16", "--batch-size", "6", "--epochs", str(epochs), "--threads", "1"]
    return [*data, *sizes, "--options", json.dumps(OPTIONS), "--workers", "0", *more]


LAUNCHER = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def started(*given: str, launcher: tuple[str, ...] = (), cwd: Path | None = None) -> subprocess.Popen[str]:
    command = [sys.executable, *launcher, "-m", "fleetnas", *given]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment, cwd=cwd)


def log_of(out: Path) -> list[dict[str, object]]:
    path = out / "training.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture(scope="module")
def whole(images, tmp_path_factory) -> Path:
    """A training without interruption."""
    out = tmp_path_factory.mktemp("whole") / "run"
    with started(*arguments(images, out)) as process:
        text = "".join(outputs(process))
    assert process.returncode == 0, text
    assert "next: fleetnas accuracy evaluate" in text
    assert text.count("top-1: smallest") == 3
    return out


def test_the_bundle_says_what_it_is(whole, images):
    bundle = SupernetBundle.open(whole / "supernet.supernet")
    manifest = bundle.manifest
    assert manifest.class_names == ("columns", "plain", "rows")
    assert manifest.dataset == images.name
    assert manifest.provenance.source.startswith("trained by fleetnas")
    assert bundle.space.resolutions == (12, 16)
    draft = read_draft(whole / "weights.safetensors")
    assert draft is not None
    assert draft.options == manifest.options
    made = export_state_dict(read_checkpoint(whole / "weights.safetensors").tensors, bundle.space)
    for name in bundle.names:
        np.testing.assert_array_equal(bundle.tensor(name), made[name])


def test_a_state_to_resume_from_is_no_checkpoint_to_export(whole, capsys):
    for command in (["inspect"], ["export", "--space", "mbconv"]):
        code, _, err = fleetnas(capsys, *command, str(whole / "checkpoint.pt"))
        assert code == 1
        assert "is the state of a training, for `fleetnas train --resume`; take weights.safetensors" in err
    code, _, err = fleetnas(capsys, "inspect", str(whole))
    assert code == 1
    assert "is a folder; give the name of a checkpoint or bundle in it" in err


def test_every_epoch_is_logged(whole):
    log = log_of(whole)
    assert [entry["epoch"] for entry in log] == [1, 2, 3]
    assert set(log[0]["accuracy"]) == {"smallest", "middle", "largest"}  # type: ignore[call-overload]
    assert list((whole / "tensorboard").iterdir())


def test_a_killed_training_resumes_to_the_same_weights(whole, images, tmp_path):
    out = tmp_path / "run"
    process = started(*arguments(images, out, "--checkpoint-steps", "1"))
    until(lambda: len(log_of(out)) >= 2 or process.poll() is not None, process)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    # Also where the images lie elsewhere by then, and from another working directory.
    moved = shutil.copytree(images, tmp_path / "moved")
    folders = ("moved/train", "--val", str(moved / "val"))
    with started("train", *folders, "--resume", "--out", "run", "--workers", "1", cwd=tmp_path) as resumed:
        text = "".join(outputs(resumed))
    assert resumed.returncode == 0, text
    assert "resuming after epoch" in text
    for name in ("weights.safetensors", "supernet.supernet"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    assert [entry["epoch"] for entry in log_of(out)] == [1, 2, 3]


def test_a_stop_is_saved_and_says_how_to_go_on(images, tmp_path, capsys):
    out = tmp_path / "run"
    process = started(*arguments(images, out, epochs=1000))
    until(lambda: len(log_of(out)) >= 1 or process.poll() is not None, process)
    for second in (["train", "--resume", "--out", str(out)], arguments(images, out)):
        code, _, error = fleetnas(capsys, *second)
        assert code == 2
        assert "another process trains in" in error
    process.send_signal(signal.SIGTERM)
    text = "".join(outputs(process))
    assert process.returncode == 128 + signal.SIGTERM, text
    assert f"go on with: fleetnas train --resume --out {out}" in text
    assert (out / "checkpoint.pt").exists()


def test_two_processes_train_what_one_does(images, tmp_path):
    # In float64: roundings in another order, which AdamW and channels sorted by importance amplify, stay out of sight.
    common = ("--precision", "fp64", "--class-weights", "balanced", "--teacher", "frozen")
    with started(*arguments(images, tmp_path / "one", *common, epochs=2)) as one:
        outputs(one)
    assert one.returncode == 0
    with started(*arguments(images, tmp_path / "two", *common, epochs=2), launcher=LAUNCHER) as two:
        text = "".join(outputs(two))
    assert two.returncode == 0, text
    first, second = (load_file(tmp_path / name / "weights.safetensors") for name in ("one", "two"))
    for name, array in first.items():
        np.testing.assert_allclose(second[name], array, atol=1e-6, err_msg=name)
    logs = [log_of(tmp_path / name)[-1] for name in ("one", "two")]
    assert logs[0]["accuracy"] == pytest.approx(logs[1]["accuracy"])


def test_the_loss_of_a_process_is_told_in_one_line(images, tmp_path):
    out = tmp_path / "run"
    launcher = started(*arguments(images, out, epochs=1000), launcher=LAUNCHER)
    until(lambda: len(log_of(out)) >= 1 or launcher.poll() is not None, launcher)
    for child in psutil.Process(launcher.pid).children():
        if child.environ().get("RANK") == "1":
            child.kill()
    text = "".join(outputs(launcher))
    assert launcher.returncode == 1
    assert "error: another process of this training has ended" in text
    assert f"--resume --out {out}" in text


def test_a_folder_in_use_and_other_options_are_refused(whole, images, capsys):
    code, _, error = fleetnas(capsys, *arguments(images, whole))
    assert code == 2
    assert "--resume" in error
    code, _, error = fleetnas(capsys, "train", "--resume", "--out", str(whole), "--batch-size", "7", "--seed", "0")
    assert code == 2
    assert "--batch-size" in error
    assert "--seed" not in error


@pytest.mark.parametrize(
    ("option", "value", "part"),
    [
        ("--resolutions", "12,a", "--resolutions"),
        ("--epochs", "0", "--epochs"),
        ("--ema", "1", "--ema"),
        ("--space", "ofa-resnet50", "inverted bottlenecks"),
        ("--from", "nothing", "neither a published supernet"),
        ("--precision", "fp16", "needs a GPU"),
        ("--width", "-1", "width"),
    ],
)
def test_impossible_options_are_refused_in_one_line(option, value, part, images, tmp_path, capsys):
    data = ["train", str(images / "train"), "--val", str(images / "val"), "--out", str(tmp_path / "run")]
    code, _, error = fleetnas(capsys, *data, option, value)
    assert code == 2, error
    assert part in error
    assert "Traceback" not in error


def test_a_loss_that_is_no_number_stops_with_advice():
    net = ElasticMBConvNet(DigitsSpace().network, (3, 5, 7), (3, 4, 6), (2, 3, 4))
    pixels = np.ones((8, 8, 8), np.float32)
    pixels[5] = np.nan
    batches = MemoryBatches(
        pixels,
        np.arange(8) % 2,
        resolutions=(8,),
        batch_size=8,
        preprocess=lambda images, resolution: images[:, None],
        augment=lambda images, rng: images,
    )
    phases = [Phase("largest", 1, (7,), (6,), (4,), 1e-3, random_subnets=0)]
    before = {name: tensor.clone() for name, tensor in net.named_parameters()}
    with pytest.raises(TrainingError, match=r"epoch 1, step 1.*--learning-rate.*image"):
        Trainer(net, batches, phases, Recipe(resolutions=(8,))).run()
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.named_parameters())


def test_another_training_teaches_and_changed_images_are_refused(whole, tmp_path, capsys):
    write_images(tmp_path / "data" / "train", 4)
    write_images(tmp_path / "data" / "val", 2, seed=1)
    out = tmp_path / "run"
    code, text, error = fleetnas(
        capsys, *arguments(tmp_path / "data", out, "--teacher", str(whole), "--precision", "bf16", epochs=2)
    )
    assert code == 0, error
    assert "teacher" in text
    assert "tensors loaded" in text
    (tmp_path / "data" / "train" / "rows" / "3.png").unlink()
    code, _, error = fleetnas(capsys, "train", "--resume", "--out", str(out))
    assert code == 2
    assert "not those that the training" in error


def test_a_checkpoint_that_does_not_fit_leaves_the_one_before(tmp_path):
    folder = RunFolder(tmp_path)
    folder.save({"trainer": torch.zeros(10)})
    before = folder.checkpoint.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # beyond it writing fails as on a full disk
    try:
        with pytest.raises(TrainingError, match=r"the checkpoint before it is kept.*--resume --out"):
            folder.save({"trainer": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert folder.checkpoint.read_bytes() == before
    assert os.listdir(tmp_path) == ["checkpoint.pt"]
