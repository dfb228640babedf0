"""Fine-tuning one subnet: it gets better, can be resumed, and its bundle is the network that its files compute."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rigs.striped_images import CLASSES, write_images, write_supernet

import fleetnas
from fleetnas.coordinator.campaign.winner_builder import BundleWinnerBuilder
from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.fleet_protocol.errors import ArchitectureError, TrainingError, UsageError
from fleetnas.fleet_protocol.messages import RuntimeSetting
from fleetnas.supernet_export.bundle import SupernetBundle
from fleetnas.supernet_export.calibration.blob import load_calibration
from fleetnas.supernet_export.cutting import cut_bundle
from fleetnas.supernet_export.emitters.onnx import emit_onnx
from fleetnas.supernet_export.evaluation.images import open_images
from fleetnas.supernet_export.export import export_digits
from fleetnas.supernet_export.graph import Statistics
from fleetnas.supernet_export.graph_tensors import graph_tensors
from fleetnas.supernet_export.manifest import Preprocessing
from fleetnas.supernet_export.slicing.subnet import slice_subnet
from fleetnas.supernet_export.spaces.registry import make_space

torch = pytest.importorskip("torch")
from fleetnas.supernet_export.training.distillation_batches import FolderBatches, NetworkInput  # noqa: E402
from fleetnas.supernet_export.training.fine_tuner import FineTuner  # noqa: E402
from fleetnas.supernet_export.training.fine_tuning import (  # noqa: E402
    FineTuned,
    FineTuningEvents,
    FineTuningRequest,
    fine_tune,
)
from fleetnas.supernet_export.training.fine_tuning_recipe import FineTuningRecipe  # noqa: E402
from fleetnas.supernet_export.training.fine_tuning_step import FineTuningStep  # noqa: E402

QUICK = FineTuningRecipe(epochs=2, batch_size=16)


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A supernet, and its images to train and to validate on."""
    folder = tmp_path_factory.mktemp("room")
    write_supernet(folder / "all.supernet")
    write_images(folder / "train", 16)
    write_images(folder / "val", 8, seed=1)
    return folder


def request(room: Path, output: Path, **changes: Any) -> FineTuningRequest:
    bundle = SupernetBundle.open(room / "all.supernet")
    asked = FineTuningRequest(
        bundle=bundle,
        architecture=bundle.space.decode(bundle.space.smallest())[0],
        images=room / "train",
        validation=room / "val",
        teacher=bundle,
        output=output,
        recipe=QUICK,
    )
    return replace(asked, **changes)


def tuned(asked: FineTuningRequest, *, resume: bool = False) -> FineTuned:
    return fine_tune(asked, FineTuningEvents(), resume=resume)


def test_fine_tuning_the_digits_smallest_subnet_makes_it_better_on_images_it_has_not_seen(tmp_path: Path) -> None:
    export_digits(tmp_path / "digits.supernet")
    bundle = SupernetBundle.open(tmp_path / "digits.supernet")
    (smallest,) = bundle.space.decode(bundle.space.smallest())
    recipe = FineTuningRecipe(epochs=1)
    asked = FineTuningRequest(bundle, smallest, None, None, bundle, tmp_path / "one.supernet", recipe)
    found = tuned(asked)
    assert found.before is not None
    assert found.after is not None
    assert found.teacher is not None
    assert found.before < found.after < found.teacher
    assert found.after > found.before + 0.1
    # The figure is that of the file that `fleetnas evaluate` builds, calibrated or not, and int8 is near it.
    one = SupernetBundle.open(tmp_path / "one.supernet", expected_sha256=found.sha256)
    models = BundleWinnerBuilder(one, open_images(one, None, "calibration"), open_images(one, None, "test"))
    exact = models.calibrate(smallest, RuntimeSetting(runtime="onnxruntime"))
    assert models.accuracy(exact) == (pytest.approx(found.after), 600)
    plain = BundleWinnerBuilder(one, None, None).calibrate(smallest, RuntimeSetting(runtime="onnxruntime"))
    assert plain.sha256 == exact.sha256
    quantised = models.accuracy(models.calibrate(smallest, RuntimeSetting(runtime="litert", precision="int8")))
    assert quantised is not None
    assert quantised[0] > found.after - 0.03


def test_the_bundle_keeps_the_supernets_manifest_and_tells_where_it_comes_from(room: Path, tmp_path: Path) -> None:
    asked = request(room, tmp_path / "one.supernet")
    found = tuned(asked)
    one = SupernetBundle.open(asked.output)
    manifest, of_supernet = one.manifest, asked.bundle.manifest
    for field in ("classes", "class_names", "dataset", "preprocessing", "format_version"):
        assert getattr(manifest, field) == getattr(of_supernet, field)
    assert manifest.class_names == CLASSES
    assert manifest.provenance.sha256 == asked.bundle.sha256
    source = manifest.provenance.source
    assert (
        f"subnet {asked.architecture.fingerprint} of all.supernet, fine-tuned for 2 epochs on 48 images of train"
        in source
    )
    assert "taught by its largest subnet" in source
    assert manifest.accuracy_predictor is not None
    assert manifest.accuracy_predictor.source == f"evaluated on 24 images of {room / 'val'}"
    predictor = one.accuracy_predictor()
    assert predictor is not None
    assert predictor.predict(one.space.one_hot(one.space.smallest()))[0] == pytest.approx(found.after)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.supernet"]


def test_calibrating_the_bundle_again_on_the_same_images_changes_no_byte_of_its_files(
    room: Path, tmp_path: Path
) -> None:
    asked = request(room, tmp_path / "one.supernet")
    tuned(asked)
    one = SupernetBundle.open(asked.output)
    setting = RuntimeSetting(runtime="onnxruntime")
    images = open_images(one, room / "train")
    again = BundleWinnerBuilder(one, images, None).calibrate(asked.architecture, setting)
    assert BundleWinnerBuilder(one, None, None).calibrate(asked.architecture, setting).sha256 == again.sha256


def test_equal_settings_give_equal_bytes_and_another_seed_other_ones(room: Path, tmp_path: Path) -> None:
    asked = request(room, tmp_path / "one.supernet", validation=None)
    first = tuned(asked)
    assert (first.before, first.after, first.teacher) == (None, None, None)
    assert tuned(replace(asked, output=tmp_path / "two.supernet")).sha256 == first.sha256
    other = replace(asked, output=tmp_path / "three.supernet", recipe=replace(QUICK, seed=1))
    assert tuned(other).sha256 != first.sha256
    assert SupernetBundle.open(asked.output).manifest.accuracy_predictor is None


def test_without_epochs_the_subnet_is_calibrated_and_cut_out(room: Path, tmp_path: Path) -> None:
    asked = request(room, tmp_path / "one.supernet", recipe=replace(QUICK, epochs=0))
    found = tuned(asked)
    assert found.before == found.after
    assert found.teacher is None
    one = SupernetBundle.open(asked.output)
    graph = slice_subnet(one, asked.architecture)
    statistics = {
        conv.name: (conv.norm.mean, conv.norm.variance) for conv in graph.convolutions() if conv.norm is not None
    }
    cut_bundle(asked.bundle, asked.architecture, tmp_path / "cut.supernet", statistics)
    cut = slice_subnet(SupernetBundle.open(tmp_path / "cut.supernet"), asked.architecture)
    # The file tells its provenance, which differs; the network is the same, and that of a search's winner.
    assert emit_onnx(replace(cut, metadata=None)) == emit_onnx(replace(graph, metadata=None))
    winner = slice_subnet(
        asked.bundle, asked.architecture, _statistics(asked.bundle, asked.architecture, room / "train")
    )
    assert emit_onnx(replace(winner, metadata=None)) == emit_onnx(replace(graph, metadata=None))


def _statistics(bundle: SupernetBundle, architecture: Architecture, images: Path) -> Statistics | None:
    models = BundleWinnerBuilder(bundle, open_images(bundle, images), None)
    blob = models.calibrate(architecture, RuntimeSetting(runtime="onnxruntime")).calibration
    assert blob is not None
    return load_calibration(blob).statistics


def test_python_fine_tunes_as_the_command_does(room: Path, tmp_path: Path) -> None:
    asked = request(room, tmp_path / "one.supernet")
    found = tuned(asked)
    with pytest.raises(UsageError, match="exists already"):
        fleetnas.fine_tune(asked.bundle, asked.architecture, asked.output, images=room / "train")
    bundle, accuracy = fleetnas.fine_tune(
        asked.bundle,
        asked.architecture,
        tmp_path / "two.supernet",
        images=room / "train",
        validation=room / "val",
        recipe=QUICK,
    )
    assert (bundle.sha256, accuracy) == (found.sha256, found.after)
    with pytest.raises(UsageError, match="cannot teach itself"):
        fleetnas.fine_tune(bundle, asked.architecture, tmp_path / "three.supernet", images=room / "train")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_training_resumed_anywhere_ends_with_the_same_weights(precision: Any, room: Path) -> None:
    bundle = SupernetBundle.open(room / "all.supernet")
    folder = open_images(bundle, room / "train")
    space = bundle.space
    smallest, largest = space.decode(np.concatenate([space.smallest(), space.largest()]))
    networks = [NetworkInput(each.r, (each.r, each.r), bundle.manifest.preprocessing) for each in (smallest, largest)]
    recipe = replace(QUICK, precision=precision)

    def tuner() -> FineTuner:
        batches = FolderBatches(folder.paths, folder.labels, networks, batch_size=16, seed=0)  # type: ignore[attr-defined]
        return FineTuner(slice_subnet(bundle, smallest), slice_subnet(bundle, largest), batches, recipe)

    whole, states = tuner(), []
    whole.run(lambda step: states.append((step, copy.deepcopy(whole.state()))))
    expected = graph_tensors(whole.graph())
    assert [step.done for step, _ in states] == [1, 2, 3, 4, 5, 6]
    for step, state in states[:-1]:
        resumed, steps = tuner(), []
        resumed.restore(state)
        assert resumed.steps_done == step.done
        resumed.run(steps.append)
        assert steps == [later for later, _ in states[step.done :]]
        found = graph_tensors(resumed.graph())
        assert all(np.array_equal(found[name], expected[name]) for name in expected)


class _Stops(FineTuningEvents):
    """Ends at a step as if the process were killed there."""

    def __init__(self, done: int) -> None:
        self._done = done

    def trained(self, step: FineTuningStep) -> None:
        if step.done == self._done:
            raise KeyboardInterrupt


@pytest.fixture
def interrupted(room: Path, tmp_path: Path) -> FineTuningRequest:
    """A training of two epochs of three steps that was interrupted in the second epoch."""
    asked = request(room, tmp_path / "one.supernet")
    with pytest.raises(KeyboardInterrupt):
        fine_tune(asked, _Stops(5))
    assert not asked.output.exists()
    assert asked.output.with_name("one.supernet.partial").exists()
    return asked


def test_an_interrupted_training_is_resumed_from_its_last_epoch(interrupted: FineTuningRequest, tmp_path: Path) -> None:
    class Steps(FineTuningEvents):
        begun, steps, done = -1, 0, 0

        def trains(self, epochs: int, steps: int, done: int) -> None:
            self.begun = done

        def trained(self, step: FineTuningStep) -> None:
            self.steps += 1

    seen = Steps()
    found = fine_tune(interrupted, seen, resume=True)
    assert (seen.begun, seen.steps) == (3, 3)
    assert found == tuned(replace(interrupted, output=tmp_path / "whole.supernet"))
    assert not interrupted.output.with_name("one.supernet.partial").exists()


def test_a_training_is_not_resumed_with_other_settings(
    interrupted: FineTuningRequest, room: Path, tmp_path: Path
) -> None:
    other = replace(interrupted, recipe=replace(QUICK, learning_rate=3e-3, epochs=3))
    with pytest.raises(UsageError, match=r"another fine-tuning \(epochs: 2, now 3; learning_rate: 0.002, now 0.003\)"):
        tuned(other, resume=True)
    with pytest.raises(UsageError, match=r"another fine-tuning \(teacher: "):
        tuned(replace(interrupted, teacher=None), resume=True)
    more = write_images(tmp_path / "train", 17)
    with pytest.raises(UsageError, match=r"another fine-tuning \(images: "):
        tuned(replace(interrupted, images=more), resume=True)
    interrupted.output.with_name("one.supernet.partial").write_bytes(b"something else")
    with pytest.raises(UsageError, match="holds no interrupted fine-tuning"):
        tuned(interrupted, resume=True)


def test_a_loss_that_is_not_finite_ends_the_training_with_advice(room: Path, tmp_path: Path) -> None:
    bundle = write_supernet(tmp_path / "huge.supernet", scale=3e38)
    asked = request(room, tmp_path / "one.supernet", bundle=bundle, teacher=None, validation=None)
    with pytest.raises(TrainingError, match=r"diverged: in epoch 1, step 1 .* lower --learning-rate than 0.002"):
        tuned(asked)
    assert [path.name for path in tmp_path.iterdir()] == ["huge.supernet"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_half_precision_without_a_gpu_is_refused(room: Path, tmp_path: Path) -> None:
    asked = request(room, tmp_path / "one.supernet", recipe=replace(QUICK, precision="fp16"), validation=None)
    with pytest.raises(UsageError, match="fp16 needs a GPU"):
        tuned(asked)


def test_another_supernet_teaches_at_its_own_size_and_with_its_own_preprocessing(room: Path, tmp_path: Path) -> None:
    options = {"classes": len(CLASSES), "resolutions": [32], "depths": [2], "kernels": [3], "expands": [3]}
    teacher = write_supernet(tmp_path / "teacher.supernet", space=make_space("mbconv", options))
    asked = request(room, tmp_path / "one.supernet", teacher=teacher, recipe=replace(QUICK, epochs=1))
    found = tuned(asked)
    assert found.teacher is not None
    source = SupernetBundle.open(asked.output).manifest.provenance.source
    assert f"taught by teacher.supernet {teacher.sha256}" in source


def test_a_teacher_of_other_classes_is_refused(room: Path, tmp_path: Path) -> None:
    digits = tmp_path / "digits.supernet"
    export_digits(digits)
    with pytest.raises(UsageError, match="in the same order; it has 10 classes, and the student 3"):
        tuned(request(room, tmp_path / "one.supernet", teacher=SupernetBundle.open(digits)))


def test_an_architecture_of_another_space_is_refused(room: Path, tmp_path: Path) -> None:
    digits = make_space("digits")
    (foreign,) = digits.decode(digits.smallest())
    with pytest.raises(ArchitectureError):
        tuned(request(room, tmp_path / "one.supernet", architecture=foreign))
    with pytest.raises(ArchitectureError):
        tuned(request(room, tmp_path / "one.supernet", architecture=Architecture(r=16)))


def test_a_missing_class_a_broken_image_and_a_single_image_are_told_before_training(room: Path, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 2)
    asked = request(room, tmp_path / "one.supernet", images=images)
    (images / "down" / "001.png").write_bytes((images / "down" / "001.png").read_bytes()[:100])
    with pytest.raises(UsageError, match=r"1 of 6 images in .* cannot be read: down/001.png"):
        tuned(asked)
    (images / "down" / "001.png").unlink()
    (images / "down" / "000.png").rename(tmp_path / "kept.png")
    (images / "down").rmdir()
    with pytest.raises(UsageError, match="down"):
        tuned(asked)
    assert not asked.output.exists()


def test_a_view_is_the_same_image_at_either_size(room: Path) -> None:
    """The teacher sees what the student sees: the same crop, flip and colours."""
    folder = open_images(SupernetBundle.open(room / "all.supernet"), room / "train")
    colour = Preprocessing(channels=3, mean=(0.0,) * 3, std=(1.0,) * 3, interpolation="bilinear")
    networks = [NetworkInput(r, (r, r), colour) for r in (16, 32)]
    batches = FolderBatches(folder.paths, folder.labels, networks, batch_size=8, seed=3)  # type: ignore[attr-defined]
    first = next(batches.epoch(0))
    small, large = first.inputs
    assert small.shape == (8, 3, 16, 16)
    assert large.shape == (8, 3, 32, 32)
    assert np.abs(small.mean(axis=(2, 3)) - large.mean(axis=(2, 3))).max() < 0.03
    assert not np.array_equal(first.chosen, next(batches.epoch(1)).chosen)
    skipped = next(batches.epoch(0, skip=1))
    assert np.array_equal(skipped.inputs[0], list(batches.epoch(0))[1].inputs[0])


@pytest.mark.parametrize(("images", "batch_size", "sizes"), [(48, 16, [16] * 3), (48, 40, [24, 24]), (3, 2, [3])])
def test_batches_are_of_nearly_equal_size_and_never_of_one_image(
    images: int, batch_size: int, sizes: list[int], room: Path
) -> None:
    folder = open_images(SupernetBundle.open(room / "all.supernet"), room / "train")
    paths, labels = folder.paths[:images], folder.labels[:images]  # type: ignore[attr-defined]
    network = NetworkInput(16, (16, 16), folder.preprocessing)  # type: ignore[attr-defined]
    batches = FolderBatches(paths, labels, [network], batch_size=batch_size, seed=0)
    parts = batches.parts(0)
    assert [len(part) for part in parts] == sizes
    assert sorted(np.concatenate(parts)) == list(range(images))
