"""Images to calibrate and evaluate on: the built-in digits, or a folder laid out like ImageNet."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fleet_protocol.errors import MissingDependencyError, UsageError
from supernet_export.bundle import Manifest, Preprocessing
from supernet_export.graph import Array

if TYPE_CHECKING:
    from PIL.Image import Image

    from supernet_export.digits.data import Part

_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"})


class ImageSource(ABC):
    """Labelled images. Every image comes preprocessed, float32 of shape (channels, resolution, resolution)."""

    labels: Sequence[int]

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def images(self, resolution: int) -> Iterator[Array]:
        """Every image, as a model to be evaluated sees it."""

    @abstractmethod
    def training_images(self, resolution: int, rng: np.random.Generator) -> Iterator[Array]:
        """Every image, in random order, as the supernet saw it in training: what to calibrate on."""

    def calibration_batches(
        self, resolution: int, rng: np.random.Generator, *, limit: int = 2000, batch: int = 100
    ) -> Iterator[Array]:
        """At most `limit` training images in batches (n, channels, resolution, resolution). OFA takes 2,000."""
        held: list[Array] = []
        for _, image in zip(range(limit), self.training_images(resolution, rng), strict=False):
            held.append(image)
            if len(held) == batch:
                yield np.stack(held)
                held = []
        if held:
            yield np.stack(held)


class DigitsImages(ImageSource):
    """One part of the built-in digits: `train`, `calibration` or `test`."""

    def __init__(self, part: Literal["train", "calibration", "test"]) -> None:
        """The images are loaded when they are first asked for: a search needs them only once it has winners."""
        from supernet_export.digits.data import require_scikit_learn

        require_scikit_learn()
        self._name = part

    @cached_property
    def labels(self) -> Sequence[int]:  # type: ignore[override]
        found: list[int] = self._part.labels.tolist()
        return found

    @cached_property
    def _part(self) -> Part:
        from supernet_export.digits.data import load_digits

        found: Part = getattr(load_digits(), self._name)
        return found

    def images(self, resolution: int) -> Iterator[Array]:
        from supernet_export.digits.data import preprocess

        yield from preprocess(self._part.images, resolution)

    def training_images(self, resolution: int, rng: np.random.Generator) -> Iterator[Array]:
        """The same as `images`: these are not augmented."""
        from supernet_export.digits.data import preprocess

        yield from preprocess(self._part.images[rng.permutation(len(self))], resolution)


class ImageFolder(ImageSource):
    """`directory/<class>/<image>`: classes are numbered in the order of their folders' names, as ImageNet's are."""

    def __init__(self, directory: Path, preprocessing: Preprocessing, classes: int) -> None:
        """`UsageError` where the folder does not hold `classes` classes of images."""
        self.preprocessing = preprocessing
        folders = sorted(entry for entry in directory.iterdir() if entry.is_dir()) if directory.is_dir() else []
        if len(folders) != classes:
            raise UsageError(
                f"{directory} must hold one folder of images per class: the supernet has {classes} classes, and there "
                f"are {len(folders)} folders"
            )
        self._paths: list[Path] = []
        labels: list[int] = []
        for label, folder in enumerate(folders):
            found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES)
            self._paths += found
            labels += [label] * len(found)
        if not labels:
            raise UsageError(f"the class folders in {directory} hold no images ({', '.join(sorted(_SUFFIXES))})")
        self.labels = labels

    def images(self, resolution: int) -> Iterator[Array]:
        """OFA's preprocessing for validation: the shorter side resized, the centre cropped."""
        for path in self._paths:
            yield self._normalised(self._centre(self._opened(path), resolution))

    def training_images(self, resolution: int, rng: np.random.Generator) -> Iterator[Array]:
        """OFA's preprocessing for calibration: random crop and flip, brightness and saturation jittered."""
        for index in rng.permutation(len(self._paths)):
            image = self._random_crop(self._opened(self._paths[index]), resolution, rng)
            yield self._normalised(_jittered(image, rng))

    def _opened(self, path: Path) -> Image:
        pil = _pillow()
        try:
            with pil.open(path) as image:
                converted: Image = image.convert("L" if self.preprocessing.channels == 1 else "RGB")
        except (OSError, ValueError) as error:
            raise UsageError(f"{path} cannot be read as an image: {error}; remove it or replace it") from None
        return converted

    def _filter(self) -> Any:
        return _pillow().Resampling[self.preprocessing.interpolation.upper()]

    def _centre(self, image: Image, resolution: int) -> Image:
        short = math.ceil(resolution / self.preprocessing.crop_fraction)
        width, height = image.size
        # Truncated, not rounded, like the longer side in torchvision's `Resize`.
        shorter = min(width, height)
        size = (int(short * width / shorter), int(short * height / shorter))
        left, top = (round((side - resolution) / 2) for side in size)
        resized = image.resize(size, self._filter())
        return resized.crop((left, top, left + resolution, top + resolution))

    def _random_crop(self, image: Image, resolution: int, rng: np.random.Generator) -> Image:
        """A random part of 8 % to 100 % of the area, mirrored half of the time (torchvision's `RandomResizedCrop`)."""
        width, height = image.size
        for _ in range(10):
            area = width * height * rng.uniform(0.08, 1)
            ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                break
        else:
            w = h = min(width, height)
        left, top = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
        crop = image.resize((resolution, resolution), self._filter(), box=(left, top, left + w, top + h))
        return crop.transpose(_pillow().Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else crop

    def _normalised(self, image: Image) -> Array:
        pixels = np.asarray(image, np.float32).reshape(image.height, image.width, -1).transpose(2, 0, 1)
        mean = np.array(self.preprocessing.mean, np.float32)[:, None, None]
        deviation = np.array(self.preprocessing.std, np.float32)[:, None, None]
        return np.ascontiguousarray((pixels / np.float32(255) - mean) / deviation)


def open_images(
    manifest: Manifest, directory: Path | None, part: Literal["train", "calibration", "test"] = "test"
) -> ImageSource:
    """The images for a bundle: those in `directory`, or one part of the built-in digits where they are what it knows.

    `UsageError` where a directory is needed.
    """
    if directory is not None:
        return ImageFolder(directory, manifest.preprocessing, manifest.classes)
    if manifest.dataset == "digits":
        return DigitsImages(part)
    raise UsageError(
        f"a supernet for {manifest.dataset} needs images; give a folder with one folder per class (--images)"
    )


def _jittered(image: Image, rng: np.random.Generator) -> Image:
    """Brightness within 32/255 and saturation within a half, as OFA was trained."""
    from PIL import ImageEnhance

    brightness, saturation = rng.uniform(1 - 32 / 255, 1 + 32 / 255), rng.uniform(0.5, 1.5)
    image = ImageEnhance.Brightness(image).enhance(brightness)
    return ImageEnhance.Color(image).enhance(saturation)


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise MissingDependencyError(
            "reading images needs Pillow, which is not installed; run: pip install pillow"
        ) from None
    return Image
