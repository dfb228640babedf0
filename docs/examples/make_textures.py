"""Make a small folder of images of eight textures, from photographs that scikit-image ships in its wheel.

    pip install scikit-image
    python docs/examples/make_textures.py data

Writes data/{train,val,test}/<class>/<number>.png: RGB, 48 pixels high, 48 to 79 wide; 1,920, 480 and 600 images. The
parts are cut from different strips of each photograph: no pixel is shared, and test differs from val by more than
noise.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image

CLASSES = ("brick", "grass", "gravel", "coffee", "chelsea", "retina", "rocket", "hubble_deep_field")
#: Name, images per class, and the strip of each photograph's width.
PARTS = (("train", 240, 0.0, 0.6), ("val", 60, 0.6, 0.8), ("test", 75, 0.8, 1.0))
HEIGHT, WIDTHS = 48, (48, 80)


def main(out: Path) -> None:
    """Write the three parts below `out`."""
    rng = np.random.default_rng(0)
    for name in CLASSES:
        file = next(Path(skimage.data.__file__).parent.glob(f"{name}.*"))
        photograph = Image.open(file).convert("RGB")
        for part, count, low, high in PARTS:
            folder = out / part / name
            folder.mkdir(parents=True, exist_ok=True)
            left, right = int(photograph.width * low), int(photograph.width * high)
            for index in range(count):
                width, height = min(int(rng.integers(*WIDTHS)), right - left), min(HEIGHT, photograph.height)
                x, y = int(rng.integers(left, right - width + 1)), int(rng.integers(0, photograph.height - height + 1))
                photograph.crop((x, y, x + width, y + height)).save(folder / f"{index:04}.png")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python docs/examples/make_textures.py FOLDER")
    main(Path(sys.argv[1]))
