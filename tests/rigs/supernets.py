"""Supernets with random weights, and bundles of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fleetnas.supernet_export.bundle import SupernetBundle, write_bundle
from fleetnas.supernet_export.export import export_state_dict
from fleetnas.supernet_export.graph import Array
from fleetnas.supernet_export.manifest import Manifest, Preprocessing, Provenance
from fleetnas.supernet_export.slicing.families import slicer_for
from fleetnas.supernet_export.spaces.base import DesignSpace


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


def random_bundle(
    path: Path, space: DesignSpace, *, classes: int | None = None, channels: int | None = None
) -> SupernetBundle:
    """A bundle of random weights, written to `path` and opened; classes and channels are those of the weights."""
    state = random_state_dict(space)
    tensors = export_state_dict(state, space)
    first = next(array for name, array in state.items() if name.startswith(("first_conv.conv", "input_stem.0.conv")))
    manifest = random_manifest(space, classes or len(state["classifier.linear.bias"]), channels or first.shape[1])
    write_bundle(path, manifest, tensors)
    return SupernetBundle.open(path)
