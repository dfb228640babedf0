"""Small images whose class is their pattern, in folders, and supernets for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from fleetnas.supernet_export.bundle import SupernetBundle, write_bundle
from fleetnas.supernet_export.export import export_state_dict
from fleetnas.supernet_export.manifest import Manifest, Preprocessing, Provenance
from fleetnas.supernet_export.spaces.base import DesignSpace
from fleetnas.supernet_export.spaces.registry import make_space
from rigs.supernets import random_state_dict

CLASSES = ("across", "down", "spots")
#: A space whose networks train in seconds.
OPTIONS = {
    "classes": len(CLASSES),
    "resolutions": [16, 24],
    "stem": {"width": 8},
    "first_block": {"width": 8},
    "stages": [{"width": 16}, {"width": 24, "stride": 2, "squeeze": True}],
    "head": {"expand_width": 48, "features": 64},
    "kernels": [3, 5],
    "expands": [2, 4],
    "depths": [1, 2],
}
COLOUR = Preprocessing(channels=3, mean=(0.5,) * 3, std=(0.25,) * 3, interpolation="bilinear")


def write_images(folder: Path, per_class: int, seed: int = 0) -> Path:
    """Write `folder/<class>/<n>.png`: stripes across, stripes down, and spots, in random colours and noise."""
    rng = np.random.default_rng(seed)
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
        for number in range(per_class):
            height, width = rng.integers(20, 32, 2)
            y, x = np.indices((height, width))
            period, phase = rng.uniform(4, 7), rng.uniform(0, 6)
            wave = np.sin((y if name != "down" else x) * 2 * np.pi / period + phase)
            if name == "spots":
                wave = wave * np.sin(x * 2 * np.pi / period + phase)
            colours = rng.uniform(0, 255, (2, 3))
            pixels = colours[0] + (0.5 + 0.5 * wave[..., None]) * (colours[1] - colours[0])
            pixels = (pixels + rng.normal(0, 20, pixels.shape)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number:03}.png")
    return folder


def striped_space() -> DesignSpace:
    return make_space("mbconv", OPTIONS)


def write_supernet(path: Path, seed: int = 0, space: DesignSpace | None = None, scale: float = 1.0) -> SupernetBundle:
    """Write and open an untrained supernet for the images; `scale` multiplies its classifier."""
    space = space or striped_space()
    state = random_state_dict(space, seed)
    state["classifier.linear.weight"] *= np.float32(scale)
    manifest = Manifest(
        space=space.name,
        options=dict(space.options),
        classes=len(CLASSES),
        class_names=CLASSES,
        dataset="patterns",
        preprocessing=COLOUR,
        provenance=Provenance(source="random weights"),
    )
    write_bundle(path, manifest, export_state_dict(state, space))
    return SupernetBundle.open(path)
