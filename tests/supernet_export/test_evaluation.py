"""Accuracy of a model file, and the images it is measured on."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from rigs.supernets import random_manifest

from fleetnas.fleet_protocol.errors import RuntimeUnavailableError, UsageError
from fleetnas.supernet_export.bundle import SupernetBundle
from fleetnas.supernet_export.calibration.activation_ranges import observe_ranges
from fleetnas.supernet_export.calibration.estimate import estimate_statistics
from fleetnas.supernet_export.emitters.onnx import emit_onnx
from fleetnas.supernet_export.emitters.onnx_int8 import emit_int8_onnx
from fleetnas.supernet_export.emitters.tflite import emit_tflite
from fleetnas.supernet_export.evaluation.classifier import evaluate, open_classifier
from fleetnas.supernet_export.evaluation.images import DigitsImages, ImageFolder, open_images
from fleetnas.supernet_export.export import export_digits
from fleetnas.supernet_export.graph import INPUT, Array, GlobalAveragePool, Graph, Linear
from fleetnas.supernet_export.interpreters.litert import without_greeting
from fleetnas.supernet_export.manifest import Preprocessing
from fleetnas.supernet_export.slicing.subnet import slice_subnet
from fleetnas.supernet_export.spaces.digits import DigitsSpace
from fleetnas.supernet_export.spaces.ofa_mbv3 import OfaMbv3Space

IMAGENET = Preprocessing(
    channels=3, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), interpolation="bilinear", crop_fraction=0.875
)


def brightest_channel(side: int) -> bytes:
    """A model that answers with the channel of the largest mean."""
    head = Linear("classifier", "pool", np.eye(3, dtype=np.float32), np.zeros(3, np.float32))
    return emit_onnx(Graph((GlobalAveragePool("pool", INPUT), head), (3, side, side), 3))


def test_accuracy_is_the_share_of_right_answers() -> None:
    images = np.zeros((4, 3, 5, 5), np.float32)
    for i, channel in enumerate((0, 1, 2, 2)):
        images[i, channel] = 1
    model = brightest_channel(5)
    assert evaluate(model, images, [0, 1, 2, 2]) == 1
    assert evaluate(model, iter(images), [0, 1, 2, 0]) == 0.75


def test_no_images_and_no_model_are_refused() -> None:
    with pytest.raises(UsageError, match="no images"):
        evaluate(brightest_channel(5), [], [])
    with pytest.raises(RuntimeUnavailableError, match="onnxruntime does not load"):
        evaluate(b"not a model", [], [])


def test_a_broken_tflite_model_is_refused() -> None:
    pytest.importorskip("ai_edge_litert.interpreter")
    with pytest.raises(RuntimeUnavailableError, match="litert does not load"):
        evaluate(b"\x1c\0\0\0TFL3" + bytes(64), [], [])


def test_without_litert_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "fleetnas.supernet_export.interpreters.litert._MODULES", (("absent_runtime.interpreter", "absent-runtime"),)
    )
    with pytest.raises(
        RuntimeUnavailableError, match=r"LiteRT is not installed; run: .* -m pip install 'ai-edge-litert>="
    ):
        evaluate(b"\x1c\0\0\0TFL3" + bytes(64), [], [])


def test_only_the_greeting_is_kept_off_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    with without_greeting():
        os.write(2, b"INFO: Created TensorFlow Lite XNNPACK delegate for CPU.\nERROR: something real\n")
    os.write(2, b"afterwards\n")
    assert capfd.readouterr().err == "ERROR: something real\nafterwards\n"


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> SupernetBundle:
    pytest.importorskip("sklearn")
    path = tmp_path_factory.mktemp("digits") / "digits.supernet"
    export_digits(path)
    return SupernetBundle.open(path)


@pytest.mark.parametrize("which", ["smallest", "largest"])
def test_a_subnet_is_as_accurate_in_both_runtimes(digits: SupernetBundle, which: str) -> None:
    """The same trained subnet as .onnx and as .tflite, each run by its own runtime: float32 answers alike but for
    ties, and int8 within 1.5 points of float32."""
    pytest.importorskip("ai_edge_litert.interpreter")
    (architecture,) = digits.space.decode(getattr(digits.space, which)())
    calibration, test = DigitsImages("calibration"), DigitsImages("test")
    batches = [np.stack(list(calibration.images(architecture.r)))]
    graph = slice_subnet(digits, architecture, estimate_statistics(slice_subnet(digits, architecture), batches))
    ranges = observe_ranges(graph, batches)
    images, labels = list(test.images(architecture.r)), np.array(test.labels)

    def logits(model: bytes) -> Array:
        classify = open_classifier(model)
        return np.stack([classify(image) for image in images])

    model = emit_onnx(graph)
    wanted = logits(model)
    found = logits(emit_tflite(graph))
    best_two = np.sort(wanted, axis=1)[:, -2:]
    clear = best_two[:, 1] - best_two[:, 0] > 1e-4 * np.ptp(wanted)
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(found.argmax(axis=1)[clear], wanted.argmax(axis=1)[clear])
    accuracy = evaluate(model, images, labels)
    assert accuracy == np.mean(wanted.argmax(axis=1) == labels)
    for quantised in (emit_int8_onnx(graph, ranges), emit_tflite(graph, ranges=ranges)):
        assert abs(evaluate(quantised, images, labels) - accuracy) <= 0.015


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three classes, each of its own colour, in images of unlike sizes."""
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    for channel, name in enumerate(("n01", "n02", "n03")):
        (tmp_path / name).mkdir()
        for i, (width, height) in enumerate([(60, 40), (33, 70), (48, 48)]):
            pixels = rng.integers(0, 100, (height, width, 3), dtype=np.uint8)
            pixels[:, :, channel] += 150
            image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    (tmp_path / "n01" / "notes.txt").write_text("not an image")
    return tmp_path


def test_a_folder_is_evaluated(folder: Path) -> None:
    source = ImageFolder(folder, IMAGENET, 3)
    assert list(source.labels) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert evaluate(brightest_channel(32), source.images(32), source.labels) == 1


def test_preprocessing_is_resize_crop_normalise(folder: Path) -> None:
    """By hand for one image: 60x40 at resolution 32 is resized to 55x37, then its centre is cropped."""
    image = pytest.importorskip("PIL.Image")
    found = next(iter(ImageFolder(folder, IMAGENET, 3).images(32)))
    resized = np.asarray(image.open(folder / "n01" / "0.png").resize((55, 37), image.Resampling.BILINEAR))
    crop = resized[2:34, 12:44].transpose(2, 0, 1) / 255
    expected = (crop - np.array(IMAGENET.mean)[:, None, None]) / np.array(IMAGENET.std)[:, None, None]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_calibration_batches_are_augmented_and_reproducible(folder: Path) -> None:
    source = ImageFolder(folder, IMAGENET, 3)
    once, again, other = (
        list(source.calibration_batches(24, np.random.default_rng(seed), limit=7, batch=3)) for seed in (0, 0, 1)
    )
    assert [batch.shape for batch in once] == [(3, 3, 24, 24), (3, 3, 24, 24), (1, 3, 24, 24)]
    assert all(np.array_equal(a, b) for a, b in zip(once, again, strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(once, other, strict=True))


def test_a_folder_that_does_not_fit_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="1000 classes, and there are 3 folders"):
        ImageFolder(folder, IMAGENET, 1000)
    with pytest.raises(UsageError, match="there is no folder of images"):
        ImageFolder(tmp_path / "absent", IMAGENET, 3)
    (folder / "n02" / "1.png").write_bytes(b"broken")
    with pytest.raises(UsageError, match=r"1\.png cannot be read"):
        list(ImageFolder(folder, IMAGENET, 3).images(32))


def test_grey_supernets_get_grey_images(folder: Path) -> None:
    grey = Preprocessing(channels=1, mean=(0.5,), std=(0.5,), interpolation="bicubic")
    assert next(iter(ImageFolder(folder, grey, 3).images(16))).shape == (1, 16, 16)


def test_a_bundle_says_where_its_images_come_from(folder: Path) -> None:
    pytest.importorskip("sklearn")
    imagenet = random_manifest(OfaMbv3Space(), 3, 3)
    digits = random_manifest(DigitsSpace(), 10, 1).model_copy(update={"dataset": "digits"})
    assert len(open_images(imagenet, folder)) == 9
    assert len(open_images(digits, None, "calibration")) == 200
    with pytest.raises(UsageError, match="--images"):
        open_images(imagenet, None)


def test_the_parts_of_the_digits_are_disjoint() -> None:
    pytest.importorskip("sklearn")
    parts = {part: DigitsImages(part) for part in ("train", "calibration", "test")}
    pixels = {part: {image.tobytes() for image in source.images(8)} for part, source in parts.items()}
    assert {part: len(source) for part, source in parts.items()} == {"train": 997, "calibration": 200, "test": 600}
    assert not pixels["train"] & pixels["test"]
    assert not pixels["calibration"] & pixels["test"]


def test_digits_calibration_takes_the_whole_part_in_any_order() -> None:
    pytest.importorskip("sklearn")
    source = DigitsImages("calibration")
    batches = list(source.calibration_batches(16, np.random.default_rng(0), batch=64))
    assert [len(batch) for batch in batches] == [64, 64, 64, 8]
    shuffled = {image.tobytes() for batch in batches for image in batch}
    assert shuffled == {image.tobytes() for image in source.images(16)}
