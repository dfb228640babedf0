"""Read images for calibration and evaluation: the built-in digits, or a folder laid out like ImageNet."""

from __future__ import annotations

import math
import os
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from fleetnas.fleet_protocol.cores import core_count
from fleetnas.fleet_protocol.errors import MissingDependencyError, UsageError
from fleetnas.supernet_export.bundle import Manifest, Preprocessing
from fleetnas.supernet_export.graph import Array

if TYPE_CHECKING:
    from PIL.Image import Image

    from fleetnas.supernet_export.digits.data import Part

_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"})
#: Folders and files that a message names.
_MOST_NAMED = 5
#: Decoding releases the interpreter's lock. A check reads JPEGs at an eighth of their size, which is faster.
_CHECK_THREADS, _CHECK_SHRINK = 8, 8


DigitsPart: TypeAlias = Literal["train", "calibration", "test"]


class ImageSource(ABC):
    """Labelled images. Every image comes preprocessed, float32 of shape (channels, resolution, resolution)."""

    labels: Sequence[int]

    def __len__(self) -> int:
        return len(self.labels)

    def check(self, progress: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Read every image once; `UsageError` names those that cannot be read, such as truncated ones.

        `progress` is given the images read and the images in all.
        """
        progress(len(self), len(self))

    @abstractmethod
    def images(self, resolution: int) -> Iterator[Array]:
        """Yield every image with the preprocessing of an evaluation."""

    @abstractmethod
    def training_images(self, resolution: int, rng: np.random.Generator) -> Iterator[Array]:
        """Yield every image in random order with the preprocessing of training, for calibration."""

    def calibration_batches(
        self, resolution: int, rng: np.random.Generator, *, limit: int = 2000, batch: int = 100
    ) -> Iterator[Array]:
        """Yield at most `limit` training images in batches (n, channels, resolution, resolution); OFA takes 2,000."""
        batched: list[Array] = []
        for _, image in zip(range(limit), self.training_images(resolution, rng), strict=False):
            batched.append(image)
            if len(batched) == batch:
                yield np.stack(batched)
                batched = []
        if batched:
            yield np.stack(batched)


class DigitsImages(ImageSource):
    """One part of the built-in digits: `train`, `calibration` or `test`."""

    def __init__(self, part: DigitsPart) -> None:
        """Load no image yet: a search needs them only once it has winners."""
        from fleetnas.supernet_export.digits.data import require_scikit_learn

        require_scikit_learn()
        self._name = part

    @cached_property
    def labels(self) -> Sequence[int]:  # type: ignore[override]
        """Class of each image."""
        found: list[int] = self._part.labels.tolist()
        return found

    @cached_property
    def _part(self) -> Part:
        from fleetnas.supernet_export.digits.data import load_digits

        found: Part = getattr(load_digits(), self._name)
        return found

    def images(self, resolution: int) -> Iterator[Array]:
        """Yield every image, preprocessed."""
        from fleetnas.supernet_export.digits.data import preprocess

        yield from preprocess(self._part.images, resolution)

    def training_images(self, resolution: int, rng: np.random.Generator) -> Iterator[Array]:
        """Yield every image in random order, without augmentation."""
        from fleetnas.supernet_export.digits.data import preprocess

        yield from preprocess(self._part.images[rng.permutation(len(self))], resolution)


class ImageFolder(ImageSource):
    """Images in `directory/<class>/<image>`; classes are numbered in the order of their names, like ImageNet's.

    Names that begin with a dot are ignored: file managers and notebooks make such files.
    """

    def __init__(self, directory: Path, preprocessing: Preprocessing, classes: int) -> None:
        """List the images; `UsageError` if the folder does not hold `classes` classes of images."""
        self.preprocessing = preprocessing
        self._directory = directory
        if not directory.is_dir():
            raise UsageError(f"there is no folder of images {directory}; check its path")
        folders = sorted(entry for entry in directory.iterdir() if entry.is_dir() and not entry.name.startswith("."))
        in_class = {folder: _images_below(folder) for folder in folders}
        if len(folders) != classes:
            raise UsageError(
                f"{directory} must hold one folder of images per class: the supernet has {classes} classes, and there "
                f"are {len(folders)} folders{_suspects(in_class, classes)}"
            )
        self._paths: list[Path] = []
        labels: list[int] = []
        for label, found in enumerate(in_class.values()):
            self._paths += found
            labels += [label] * len(found)
        if not labels:
            raise UsageError(f"the class folders in {directory} hold no images ({', '.join(sorted(_SUFFIXES))})")
        self.labels = labels

    def images(self, resolution: int) -> Iterator[Array]:
        """Yield every image with OFA's preprocessing for validation: resize the shorter side, crop the centre."""
        for path in self._paths:
            yield self._normalised(self._centre(self._opened(path), resolution))

    def training_images(self, resolution: int, rng: np.random.Generator) -> Iterator[Array]:
        """Yield images with OFA's preprocessing for calibration: random crop and flip, jittered colours."""
        for index in rng.permutation(len(self._paths)):
            image = self._random_crop(self._opened(self._paths[index]), resolution, rng)
            yield self._normalised(_jittered(image, rng))

    def check(self, progress: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Decode every image in threads; `UsageError` names those that cannot be read."""
        _pillow()
        faulty: list[tuple[Path, str]] = []
        with ThreadPoolExecutor(min(_CHECK_THREADS, core_count())) as readers:
            for done, (path, fault) in enumerate(zip(self._paths, readers.map(_fault, self._paths), strict=True), 1):
                if fault:
                    faulty.append((path, fault))
                progress(done, len(self._paths))
        if faulty:
            named = ", ".join(f"{path.relative_to(self._directory)} ({fault})" for path, fault in faulty[:_MOST_NAMED])
            rest = f" and {len(faulty) - _MOST_NAMED:,} more" if len(faulty) > _MOST_NAMED else ""
            raise UsageError(
                f"{len(faulty):,} of {len(self._paths):,} images in {self._directory} cannot be read: {named}{rest}; "
                "remove or replace them"
            )

    def _opened(self, path: Path) -> Image:
        pil = _pillow()
        try:
            with pil.open(path) as image:
                converted: Image = image.convert("L" if self.preprocessing.channels == 1 else "RGB")
        except Exception as error:  # noqa: BLE001 - a decoder raises anything for a broken file
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
        """Crop a random 8 % to 100 % of the area, flip it half of the time (torchvision's `RandomResizedCrop`)."""
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


def _images_below(folder: Path) -> list[Path]:
    if not os.access(folder, os.R_OK | os.X_OK):
        raise UsageError(f"the class folder {folder} cannot be read; check who may read it")
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in _SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )


def _suspects(in_class: dict[Path, list[Path]], classes: int) -> str:
    """Name the folders that are probably no classes: those without images, else those with unusual names."""
    names = [folder.name for folder in in_class]
    if len(names) < classes:
        return f": {', '.join(names)}" if 0 < len(names) <= _MOST_NAMED else ""
    suspects = [folder.name for folder, found in in_class.items() if not found]
    reason = "which hold no images" if len(suspects) > 1 else "which holds no images"
    if not suspects:
        shapes = Counter(_shape(name) for name in names)
        usual = shapes.most_common(1)[0][0]
        suspects, reason = [name for name in names if _shape(name) != usual], "named unlike the others"
    if not suspects or len(suspects) == len(names):
        return "; remove those that are no class"
    more = f" and {len(suspects) - _MOST_NAMED} more" if len(suspects) > _MOST_NAMED else ""
    return f", among them {', '.join(suspects[:_MOST_NAMED])}{more}, {reason}; remove what is no class"


def _shape(name: str) -> str:
    """Return the pattern of a name: `n01440764` and `n01443537` have the same."""
    return re.sub(r"[^\W\d_]+", "a", re.sub(r"\d+", "0", name))


def _fault(path: Path) -> str:
    """Return why an image cannot be read to its end; empty if it can."""
    try:
        with _pillow().open(path) as image:
            image.draft(image.mode, (max(1, image.width // _CHECK_SHRINK), max(1, image.height // _CHECK_SHRINK)))
            image.load()
    except Exception as error:  # noqa: BLE001 - a decoder raises anything for a broken file
        return "it is no image" if type(error).__name__ == "UnidentifiedImageError" else str(error)
    return ""


def open_images(manifest: Manifest, directory: Path | None, part: DigitsPart = "test") -> ImageSource:
    """Open the images for a bundle: those in `directory`, or one part of the built-in digits for a bundle of digits.

    Raises `UsageError` if a directory is needed.
    """
    if directory is not None:
        return ImageFolder(directory, manifest.preprocessing, manifest.classes)
    if manifest.dataset == "digits":
        return DigitsImages(part)
    raise UsageError(
        f"a supernet for {manifest.dataset} needs images; give a folder with one folder per class (--images)"
    )


def _jittered(image: Image, rng: np.random.Generator) -> Image:
    """Jitter brightness within 32/255 and saturation within a half, like OFA's training."""
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
