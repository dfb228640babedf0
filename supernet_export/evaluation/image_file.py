"""Open image files of any kind as upright grey or RGB images whose values run from 0 to 255."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fleetnas.fleet_protocol.errors import MissingDependencyError, UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"})
#: Channels that image files can be read as: grey and RGB.
CHANNELS = (1, 3)
#: A check reads JPEGs at an eighth of their size, which is faster.
_CHECK_SHRINK = 8
_LARGEST_16_BIT = 65535
#: EXIF's tag, and for its values other than 1 the way back to the upright image (EXIF 2.32, table 4).
_ORIENTATION = 0x0112
_TURNS: Mapping[Any, str] = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}


def check_channels(channels: int) -> None:
    """Raise `UsageError` where image files cannot be read as images of `channels` channels."""
    if channels not in CHANNELS:
        raise UsageError(
            f"the supernet takes images of {channels} channels, and image files are read as 1 (grey) or 3 (RGB); "
            "evaluate it in a program of your own, or train a supernet for 1 or 3 channels"
        )


def open_image(path: Path, channels: int) -> Image:
    """Read an image file as Pillow's mode `L` or `RGB`, or as `F` where its grey has 16 bits or is float.

    The image is turned upright as its EXIF orientation says. An alpha channel is dropped; RGB becomes grey by ITU-R
    601 luma. 16-bit values are divided by 257, so that every mode runs from 0 to 255; float values must lie in [0, 1].

    Raises:
        UsageError: the file cannot be read as an image, or its values are in no known range.
    """
    pil = pillow()
    try:
        with pil.open(path) as image:
            image.load()  # broken pixels must not pass for broken EXIF data
            return _converted(_upright(image), channels)
    except Exception as error:  # noqa: BLE001 - a decoder raises anything for a broken file
        raise UsageError(f"{path} cannot be read as an image: {error}; remove it or replace it") from None


def fault(path: Path) -> str:
    """Return why an image cannot be read to its end; empty if it can."""
    try:
        with pillow().open(path) as image:
            image.draft(image.mode, (max(1, image.width // _CHECK_SHRINK), max(1, image.height // _CHECK_SHRINK)))
            image.load()
            _converted(image, 1)
    except Exception as error:  # noqa: BLE001 - a decoder raises anything for a broken file
        return "it is no image" if type(error).__name__ == "UnidentifiedImageError" else str(error)
    return ""


def pillow() -> Any:
    """Return the module `PIL.Image`; `MissingDependencyError` where Pillow is not installed."""
    try:
        from PIL import Image
    except ImportError:
        raise MissingDependencyError(
            "reading images needs Pillow, which is not installed; run: pip install pillow"
        ) from None
    return Image


def _upright(image: Image) -> Image:
    """Turn an image as its EXIF orientation says; one whose EXIF data cannot be read stays as it is stored."""
    try:
        turn = _TURNS.get(image.getexif().get(_ORIENTATION))
    except Exception:  # noqa: BLE001 - Pillow raises anything for broken EXIF data, and the pixels are whole
        return image
    return image if turn is None else image.transpose(pillow().Transpose[turn])


def _converted(image: Image, channels: int) -> Image:
    deep = _deep_grey(image)
    if deep is not None:
        found: Image = pillow().fromarray(deep)
        return found
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # keeps the colours of the palette, which a direct conversion warns about
    if image.mode == "LAB":  # which Pillow converts to RGB alone
        image = image.convert("RGB")
    return image.convert("L" if channels == 1 else "RGB")


def _deep_grey(image: Image) -> Any:
    """Return float32 pixels from 0 to 255 of an image with one channel of more than 8 bits; None for others.

    `ValueError` where the values are in no known range.
    """
    if image.mode == "F":
        pixels = np.asarray(image, np.float32)
        if not (pixels.min() >= 0 and pixels.max() <= 1):  # false for NaN too
            raise ValueError(
                f"its float values run from {pixels.min():g} to {pixels.max():g} and must lie between 0 and 1; save it "
                "with 16-bit integers"
            )
        return pixels * np.float32(255)
    if image.mode != "I" and not image.mode.startswith("I;16"):
        return None
    values = np.asarray(image)
    if values.min() < 0 or values.max() > _LARGEST_16_BIT:
        raise ValueError(
            f"its values run from {values.min()} to {values.max()} and must lie between 0 and {_LARGEST_16_BIT:,}; "
            "save it with 16-bit integers"
        )
    return values.astype(np.float32) / np.float32(257)
