"""Fitting images to the network's input: crop, squash and letterbox, square and not."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rigs.supernets import random_manifest

from fleetnas.supernet_export.evaluation.image_fit import Size, evaluation_view, random_box, training_view
from fleetnas.supernet_export.evaluation.images import open_images
from fleetnas.supernet_export.graph import Array
from fleetnas.supernet_export.manifest import Fit, Preprocessing
from fleetnas.supernet_export.spaces.registry import make_space

pil = pytest.importorskip("PIL.Image")

MEAN = (0.2, 0.4, 0.6)


def preprocessing(fit: Fit, crop_fraction: float = 1.0) -> Preprocessing:
    return Preprocessing(
        channels=3, mean=MEAN, std=(0.25,) * 3, interpolation="bilinear", crop_fraction=crop_fraction, fit=fit
    )


def picture(width: int, height: int) -> Any:
    """Noise, and a pure red column at the left, a pure blue row at the bottom."""
    pixels = np.random.default_rng(0).integers(0, 200, (height, width, 3), dtype=np.uint8)
    pixels[:, : width // 8] = (255, 0, 0)
    pixels[-height // 8 :] = (0, 0, 255)
    return pil.fromarray(pixels)


def normalised(image: Any) -> Array:
    pixels = np.asarray(image, np.float32).transpose(2, 0, 1) / np.float32(255)
    mean, deviation = (np.array(values, np.float32)[:, None, None] for values in (MEAN, (0.25,) * 3))
    return (pixels - mean) / deviation


@pytest.mark.parametrize("shape", [(60, 40), (40, 60), (33, 70), (48, 48), (7, 500), (20, 20), (224, 225)])
@pytest.mark.parametrize("fraction", [0.875, 1.0])
@pytest.mark.parametrize("side", [32, 24, 96])
def test_square_crop_is_ofas_bit_for_bit(shape: tuple[int, int], fraction: float, side: int) -> None:
    """The way that fleetnas 0.1 took for every image: torchvision's `Resize`, then its `CenterCrop`."""
    image = picture(*shape)
    short = math.ceil(side / fraction)
    width, height = image.size
    size = (int(short * width / min(width, height)), int(short * height / min(width, height)))
    left, top = (round((length - side) / 2) for length in size)
    expected = image.resize(size, pil.Resampling.BILINEAR).crop((left, top, left + side, top + side))
    np.testing.assert_array_equal(
        evaluation_view(image, (side, side), preprocessing("crop", fraction)), normalised(expected)
    )


def test_square_training_view_is_ofas_bit_for_bit() -> None:
    from PIL import ImageEnhance

    image = picture(60, 40)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        for _ in range(10):
            area = 60 * 40 * rng.uniform(0.08, 1)
            ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= 60 and 0 < h <= 40:
                break
        else:
            w = h = 40
        left, top = int(rng.integers(0, 60 - w + 1)), int(rng.integers(0, 40 - h + 1))
        crop = image.resize((24, 24), pil.Resampling.BILINEAR, box=(left, top, left + w, top + h))
        crop = crop.transpose(pil.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else crop
        brightness, saturation = rng.uniform(1 - 32 / 255, 1 + 32 / 255), rng.uniform(0.5, 1.5)
        expected = ImageEnhance.Color(ImageEnhance.Brightness(crop).enhance(brightness)).enhance(saturation)
        found = training_view(image, (24, 24), preprocessing("crop"), np.random.default_rng(seed))
        np.testing.assert_array_equal(found, normalised(expected))


@pytest.mark.parametrize("fit", ["crop", "squash", "letterbox"])
@pytest.mark.parametrize("size", [(32, 48), (48, 32), (16, 128), (40, 40)])
@pytest.mark.parametrize("shape", [(60, 40), (40, 60), (9, 300), (300, 9), (1, 1), (3, 1)])
def test_every_image_gets_the_inputs_size(fit: Fit, size: Size, shape: tuple[int, int]) -> None:
    image, rng = picture(*shape), np.random.default_rng(0)
    for view in (
        evaluation_view(image, size, preprocessing(fit)),
        *(training_view(image, size, preprocessing(fit), rng) for _ in range(5)),
    ):
        assert view.shape == (3, *size)
        assert view.dtype == np.float32
        assert view.flags.c_contiguous
        assert np.isfinite(view).all()


def test_crop_of_another_aspect_ratio_cuts_one_pair_of_sides() -> None:
    """A 60x40 image covers an input of 24 by 48 at 48x32: rows are cut, columns are not."""
    image = picture(60, 40)
    resized = image.resize((48, 32), pil.Resampling.BILINEAR)
    expected = normalised(resized.crop((0, 4, 48, 28)))
    np.testing.assert_array_equal(evaluation_view(image, (24, 48), preprocessing("crop")), expected)


def test_crop_fraction_holds_for_both_sides() -> None:
    """At 0.5 the image covers 48 by 96, and the middle 24 by 48 are taken."""
    image = picture(60, 40)
    resized = image.resize((96, 64), pil.Resampling.BILINEAR)
    expected = normalised(resized.crop((24, 20, 72, 44)))
    np.testing.assert_array_equal(evaluation_view(image, (24, 48), preprocessing("crop", 0.5)), expected)


def test_squash_shows_the_whole_image() -> None:
    image = picture(60, 40)
    np.testing.assert_array_equal(
        evaluation_view(image, (32, 32), preprocessing("squash")),
        normalised(image.resize((32, 32), pil.Resampling.BILINEAR)),
    )


@pytest.mark.parametrize(
    ("shape", "size", "inside", "corner"),
    [
        ((60, 40), (30, 30), (30, 20), (5, 0)),
        ((40, 60), (30, 30), (20, 30), (0, 5)),
        ((60, 40), (32, 96), (48, 32), (0, 24)),
        ((60, 40), (20, 30), (30, 20), (0, 0)),
    ],
)
def test_letterbox_shows_the_whole_image_between_borders_of_0(
    shape: tuple[int, int], size: Size, inside: tuple[int, int], corner: tuple[int, int]
) -> None:
    image = picture(*shape)
    found = evaluation_view(image, size, preprocessing("letterbox"))
    top, left = corner
    rows, columns = slice(top, top + inside[1]), slice(left, left + inside[0])
    np.testing.assert_array_equal(found[:, rows, columns], normalised(image.resize(inside, pil.Resampling.BILINEAR)))
    found[:, rows, columns] = 0
    assert not found.any()


def test_parts_for_training_have_the_aspect_ratio_of_the_view() -> None:
    rng = np.random.default_rng(0)
    boxes = [random_box((600, 400), 3.0, rng) for _ in range(200)]
    ratios = np.array([(right - left) / (bottom - top) for left, top, right, bottom in boxes])
    assert 3 * 0.74 < ratios.min() < ratios.max() < 3 * 1.36
    assert all(0 <= left < right <= 600 and 0 <= top < bottom <= 400 for left, top, right, bottom in boxes)


def test_input_size_is_the_spaces(tmp_path: Path) -> None:
    """A space whose images are twice as wide as high: a bundle's images come in that size."""
    space = make_space("mbconv", {"aspect": [1, 2], "classes": 2})
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        picture(60, 40).save(tmp_path / name / "0.png")
    manifest = random_manifest(space, 2, 3, class_names=("a", "b"), fit="letterbox")
    source = open_images(manifest, tmp_path)
    resolution = space.resolutions[0]
    assert space.input_size(resolution) == (resolution, 2 * resolution)
    assert {view.shape for view in source.images(resolution)} == {(3, resolution, 2 * resolution)}
    (batch,) = source.calibration_batches(resolution, np.random.default_rng(0))
    assert batch.shape == (2, 3, resolution, 2 * resolution)
