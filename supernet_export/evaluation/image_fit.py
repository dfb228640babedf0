"""Fit images to a network's input: views for evaluation and for training, of shape (channels, height, width).

`crop` is OFA's preprocessing, which is torchvision's: for square inputs both give the same bits.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from fleetnas.supernet_export.evaluation.image_file import pillow
from fleetnas.supernet_export.graph import Array
from fleetnas.supernet_export.manifest import Preprocessing

if TYPE_CHECKING:
    from PIL.Image import Image

#: Height and width in pixels.
Size = tuple[int, int]


def evaluation_view(image: Image, size: Size, preprocessing: Preprocessing) -> Array:
    """Return the whole image, or its centre, at `size` (height, width), normalised.

    `image` is one that `open_image` returns.
    """
    match preprocessing.fit:
        case "crop":
            return normalised(_centre(image, size, preprocessing), preprocessing)
        case "squash":
            return normalised(image.resize(size[::-1], _filter(preprocessing)), preprocessing)
        case "letterbox":
            return _letterboxed(image, size, preprocessing)


def training_view(image: Image, size: Size, preprocessing: Preprocessing, rng: np.random.Generator) -> Array:
    """Return a random part of the image at `size` (height, width), normalised: OFA's random crop, flip and colours.

    The part has 8 % to 100 % of the area; its aspect ratio is 3/4 to 4/3 of the input's for `crop`, of the image's for
    `squash` and `letterbox`. Brightness changes within 32/255, saturation within a half.
    """
    height, width = size
    aspect = width / height if preprocessing.fit == "crop" else image.width / image.height
    box = random_box(image.size, aspect, rng)
    if preprocessing.fit == "letterbox":
        width, height = _inside(box[2] - box[0], box[3] - box[1], size)
    part = image.resize((width, height), _filter(preprocessing), box=box)
    if rng.random() < 0.5:
        part = part.transpose(pillow().Transpose.FLIP_LEFT_RIGHT)
    found = normalised(_jittered(part, rng), preprocessing)
    return found if found.shape[1:] == size else _bordered(found, size)


def random_box(image_size: Size, aspect: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Return left, top, right, bottom of a random part of an image (torchvision's `RandomResizedCrop`).

    `image_size` is (width, height), as Pillow has it; `aspect` is width over height.
    """
    width, height = image_size
    for _ in range(10):
        area = width * height * rng.uniform(0.08, 1)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3))) * aspect
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            break
    else:
        w = max(1, min(width, round(height * aspect)))
        h = max(1, min(height, round(width / aspect)))
    left, top = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
    return left, top, left + w, top + h


def normalised(image: Image, preprocessing: Preprocessing) -> Array:
    """Return pixels minus mean over deviation, shape (channels, height, width); one grey channel serves all three."""
    pixels = np.asarray(image, np.float32).reshape(image.height, image.width, -1).transpose(2, 0, 1)
    if image.mode == "F":  # bicubic interpolation leaves the range, which bytes cannot
        pixels = pixels.clip(0, 255)
    mean = np.array(preprocessing.mean, np.float32)[:, None, None]
    deviation = np.array(preprocessing.std, np.float32)[:, None, None]
    return np.ascontiguousarray((pixels / np.float32(255) - mean) / deviation)


def _centre(image: Image, size: Size, preprocessing: Preprocessing) -> Image:
    high, wide = (math.ceil(side / preprocessing.crop_fraction) for side in size)
    width, height = image.size
    # Truncated, not rounded, like the longer side in torchvision's `Resize`.
    scale, over = (high, height) if high * width >= wide * height else (wide, width)
    resized = image.resize((int(scale * width / over), int(scale * height / over)), _filter(preprocessing))
    left, top = round((resized.width - size[1]) / 2), round((resized.height - size[0]) / 2)
    return resized.crop((left, top, left + size[1], top + size[0]))


def _letterboxed(image: Image, size: Size, preprocessing: Preprocessing) -> Array:
    inside = image.resize(_inside(*image.size, size), _filter(preprocessing))
    return _bordered(normalised(inside, preprocessing), size)


def _inside(width: int, height: int, size: Size) -> Size:
    """Return the largest width and height of this aspect ratio that lie inside `size` (height, width)."""
    scale = min(size[1] / width, size[0] / height)
    return max(1, min(size[1], round(width * scale))), max(1, min(size[0], round(height * scale)))


def _bordered(pixels: Array, size: Size) -> Array:
    """Put normalised pixels into the middle of `size`; borders of the mean colour are 0."""
    found = np.zeros((len(pixels), *size), np.float32)
    top, left = (size[0] - pixels.shape[1]) // 2, (size[1] - pixels.shape[2]) // 2
    found[:, top : top + pixels.shape[1], left : left + pixels.shape[2]] = pixels
    return found


def _jittered(image: Image, rng: np.random.Generator) -> Image:
    """Jitter brightness within 32/255 and saturation within a half, like OFA's training."""
    from PIL import ImageEnhance

    brightness, saturation = rng.uniform(1 - 32 / 255, 1 + 32 / 255), rng.uniform(0.5, 1.5)
    if image.mode == "F":  # grey of 16 bits, which has no saturation
        return pillow().fromarray(np.asarray(image) * np.float32(brightness))
    image = ImageEnhance.Brightness(image).enhance(brightness)
    return ImageEnhance.Color(image).enhance(saturation)


def _filter(preprocessing: Preprocessing) -> Any:
    return pillow().Resampling[preprocessing.interpolation.upper()]
