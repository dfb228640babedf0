"""Supernets with random weights, and bundles of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from supernet_export.bundle import Manifest, Preprocessing, Provenance, SupernetBundle, write_bundle
from supernet_export.export import export_state_dict
from supernet_export.families import slicer_for
from supernet_export.graph import Array
from supernet_export.spaces.base import DesignSpace


def random_state_dict(space: DesignSpace, seed: int = 0) -> dict[str, Array]:
    """A checkpoint under canonical names whose activations neither vanish nor explode."""
    rng = np.random.default_rng(seed)
    state: dict[str, Array] = {}
    slicer = slicer_for(space)
    for name, shape in (slicer.checkpoint_shapes() | slicer.optional_shapes()).items():
        if name.endswith("_matrix"):
            value = np.eye(shape[0]) + 0.1 * rng.standard_normal(shape)
        elif name.endswith(("running_var", "bn.weight")):
            value = rng.uniform(0.5, 1.5, shape)
        elif len(shape) == 1:
            value = 0.2 * rng.standard_normal(shape)
        else:
            value = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        state[name] = value.astype(np.float32)
    return state


def random_manifest(space: DesignSpace, classes: int, channels: int) -> Manifest:
    return Manifest(
        space=space.name,
        options=dict(space.options),
        classes=classes,
        dataset="random",
        preprocessing=Preprocessing(
            channels=channels, mean=(0.5,) * channels, std=(0.25,) * channels, interpolation="bilinear"
        ),
        provenance=Provenance(source="random weights"),
    )


def random_bundle(path: Path, space: DesignSpace, *, classes: int = 10, channels: int = 1) -> SupernetBundle:
    """A bundle of random weights, written to `path` and opened."""
    tensors = export_state_dict(random_state_dict(space), space)
    write_bundle(path, random_manifest(space, classes, channels), tensors)
    return SupernetBundle.open(path)
