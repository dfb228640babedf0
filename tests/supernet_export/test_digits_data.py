"""The digits' split, preprocessing, distortion, and what ships about their accuracy."""

from __future__ import annotations

import hashlib
import sys

import numpy as np
import pytest

pytest.importorskip("sklearn")

from fleetnas.fleet_protocol.errors import MissingDependencyError
from fleetnas.supernet_export.digits import data
from fleetnas.supernet_export.training.augmentation import Distortion


def test_the_parts_are_disjoint_and_hold_every_image():
    digits = data.load_digits()
    rows = [part.images.reshape(len(part), -1) for part in (digits.train, digits.calibration, digits.test)]
    assert [len(part) for part in rows] == [997, 200, 600]
    distinct = {row.tobytes() for part in rows for row in part}
    assert len(distinct) == 1797, "no two of the 1,797 images are equal, so neither are images of two parts"


def test_the_split_never_changes():
    """Every published accuracy is of these 600 test images."""
    test = data.load_digits().test
    digest = hashlib.sha256(test.images.astype(np.uint8).tobytes() + test.labels.astype(np.uint8).tobytes())
    assert digest.hexdigest()[:16] == "37760b0da8a973b4"


def test_training_pixels_have_the_documented_mean_and_deviation():
    pixels = data.load_digits().train.images / data.FULL_SCALE
    assert pixels.mean() == pytest.approx(data.MEAN, abs=1e-3)
    assert pixels.std() == pytest.approx(data.DEVIATION, abs=1e-3)


def test_without_scikit_learn_the_package_is_named(monkeypatch):
    data.load_digits.cache_clear()
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingDependencyError, match=r"pip install .*scikit-learn"):
        data.load_digits()


@pytest.mark.parametrize("resolution", [6, 8, 12, 24, 40])
def test_resizing_equals_torchs(resolution):
    torch = pytest.importorskip("torch")
    images = data.load_digits().test.images[:16]
    standard = (torch.from_numpy(images)[:, None] / data.FULL_SCALE - data.MEAN) / data.DEVIATION
    expected = torch.nn.functional.interpolate(standard, size=(resolution, resolution), mode="bilinear")
    found = data.preprocess(images, resolution)
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_a_distortion_without_extent_changes_nothing():
    images = data.load_digits().test.images[:8]
    same = Distortion(rotation=0, scale=0, shear=0, shift=0)(images, np.random.default_rng(0))
    np.testing.assert_allclose(same, images, atol=1e-5)


def test_a_distortion_equals_torchs_affine_sampling():
    torch = pytest.importorskip("torch")
    images = data.load_digits().test.images[:8]
    distortion = Distortion(rotation=0.5, scale=0, shear=0, shift=3)
    found = distortion(images, np.random.default_rng(1))
    limits = np.array([0.5, 0, 0, 3, 3])
    angle, _, _, down, across = np.random.default_rng(1).uniform(-limits, limits, (8, 5)).T
    # Torch's grid has x before y, and its unit is half the side.
    cos, sin, half = np.cos(angle), np.sin(angle), data.SIDE / 2
    theta = np.stack([np.stack([cos, sin, across / half], 1), np.stack([-sin, cos, down / half], 1)], 1)
    grid = torch.nn.functional.affine_grid(torch.from_numpy(theta), (8, 1, 8, 8), align_corners=False)
    inputs = torch.from_numpy(images[:, None].astype(np.float64))
    expected = torch.nn.functional.grid_sample(inputs, grid, padding_mode="zeros", align_corners=False)[:, 0]
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)
