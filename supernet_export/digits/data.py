"""Load scikit-learn's handwritten digits: 1,797 grey images of 8x8 pixels in ten classes, in a fixed split.

Source: the test part of *Optical Recognition of Handwritten Digits* (UCI), which scikit-learn installs with itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import util
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fleetnas.fleet_protocol.errors import MissingDependencyError
from fleetnas.fleet_protocol.installing import install_package

Images = NDArray[np.float32]
Labels = NDArray[np.int64]

#: Side of an original image, in pixels.
SIDE = 8
CLASSES = 10
#: Grey levels are divided by this, then standardised with the mean and deviation of the training part's pixels.
FULL_SCALE = 16.0
MEAN, DEVIATION = 0.306, 0.376

#: The shuffle that splits the images. Changing it changes what every published accuracy was measured on.
SPLIT_SEED = 20
CALIBRATION_COUNT, TEST_COUNT = 200, 600


@dataclass(frozen=True)
class Part:
    """Images of shape (n, 8, 8), grey levels 0 to 16, with their labels, shape (n,)."""

    images: Images
    labels: Labels

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Digits:
    """Three disjoint parts.

    Weights are trained on `train`, batch-norm statistics estimated on `calibration`, and only accuracy is measured on
    `test`.
    """

    train: Part
    calibration: Part
    test: Part


@cache
def load_digits() -> Digits:
    """Return the fixed split: 997 training, 200 calibration, 600 test images.

    `MissingDependencyError` where scikit-learn, which holds the images, is not installed.
    """
    require_scikit_learn()
    table = _table()
    images = table[:, :-1].reshape(-1, SIDE, SIDE).astype(np.float32)
    labels = table[:, -1].astype(np.int64)
    order = np.random.default_rng(SPLIT_SEED).permutation(len(labels))
    held = CALIBRATION_COUNT + TEST_COUNT
    parts = order[held:], order[TEST_COUNT:held], order[:TEST_COUNT]
    train, calibration, test = (Part(images[chosen], labels[chosen]) for chosen in parts)
    return Digits(train=train, calibration=calibration, test=test)


def _table() -> NDArray[np.float64]:
    """Return a row per image, (1797, 65): its pixels, then its label.

    Read from scikit-learn's file where it lies in its place: importing the package takes seconds and 75 MiB.
    """
    spec = util.find_spec("sklearn")
    for folder in (spec.submodule_search_locations if spec is not None else None) or ():
        file = Path(folder, "datasets", "data", "digits.csv.gz")
        if file.exists():
            return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits as load

    images, labels = load(return_X_y=True)
    return np.column_stack([images, labels])


def require_scikit_learn() -> None:
    """Raise `MissingDependencyError` if scikit-learn is missing; it is not imported, which takes over a second."""
    if util.find_spec("sklearn") is None:
        raise MissingDependencyError(
            f"the digits images come with scikit-learn, which is not installed; run: {install_package('scikit-learn')}"
        )


def preprocess(images: Images, resolution: int) -> Images:
    """Return the network's input for images of shape (n, 8, 8): float32 of shape (n, 1, resolution, resolution).

    Standardised, then resized bilinearly without aligned corners, as torch's `interpolate` does by default.
    """
    scaled = (images.astype(np.float32) / np.float32(FULL_SCALE) - np.float32(MEAN)) / np.float32(DEVIATION)
    across = _interpolation(scaled.shape[-1], resolution)
    down = _interpolation(scaled.shape[-2], resolution)
    resized: Images = down @ scaled @ across.T
    return np.ascontiguousarray(resized[:, None])


@cache
def _interpolation(source: int, target: int) -> Images:
    """Return bilinear weights along one axis, shape (target, source)."""
    position = np.maximum((np.arange(target) + 0.5) * source / target - 0.5, 0)
    left = np.minimum(position.astype(np.intp), source - 1)
    right = np.minimum(left + 1, source - 1)
    fraction = position - left
    weights = np.zeros((target, source))
    rows = np.arange(target)
    weights[rows, left] += 1 - fraction
    weights[rows, right] += fraction
    return weights.astype(np.float32)
