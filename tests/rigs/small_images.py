"""Small folders of images that a supernet learns in seconds: stripes in two directions and none, on noise."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

CLASSES = ("columns", "plain", "rows")


def write_images(folder: Path, count: int, *, classes: Sequence[str] = CLASSES, seed: int = 0, side: int = 24) -> Path:
    """Write `count` images of each class to `folder/<class>/<n>.png`, RGB, wider than high; return the folder."""
    from PIL import Image

    for place, name in enumerate(classes):
        rng = np.random.default_rng([seed, place])
        (folder / name).mkdir(parents=True)
        for index in range(count):
            pixels = rng.integers(0, 60, (side, side + int(rng.integers(0, 12)), 3)) + rng.integers(0, 100)
            if name == "rows":
                pixels[::4] += 90
            elif name == "columns":
                pixels[:, ::4] += 90
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{index}.png")
    return folder
