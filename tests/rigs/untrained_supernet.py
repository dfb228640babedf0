"""A bundle of the digits space with random weights: real to slice, build and measure, quick to make."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fleetnas.supernet_export.accuracy.model import AccuracyPredictor
from fleetnas.supernet_export.bundle import ACCURACY_PREFIX, write_bundle
from fleetnas.supernet_export.export import export_state_dict
from fleetnas.supernet_export.manifest import AccuracyPredictorInfo
from fleetnas.supernet_export.spaces.digits import DigitsSpace
from rigs import supernets


def write_untrained(path: Path, seed: int = 0) -> Path:
    """Write the bundle; its accuracy predictor likes whatever is larger, a little more of one thing than of another."""
    space = DigitsSpace()
    width = space.one_hot(space.smallest()).shape[1]
    liking = np.random.default_rng(0).uniform(0.5, 1.5, width) * np.tile([1.0, 2.0, 3.0], width)[:width]
    accuracy = AccuracyPredictor([(0.002 * liking[None]).astype(np.float32)], [np.array([0.5], np.float32)])
    tensors = export_state_dict(supernets.random_state_dict(space, seed), space)
    tensors |= {f"{ACCURACY_PREFIX}{name}": array for name, array in accuracy.tensors().items()}
    manifest = supernets.random_manifest(space, 10, 1).model_copy(
        update={"dataset": "digits", "accuracy_predictor": AccuracyPredictorInfo(source="random")}
    )
    write_bundle(path, manifest, tensors)
    return path
