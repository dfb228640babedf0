"""Open the images that calibrate and evaluate a supernet's subnets: the built-in digits, or a folder of images."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.supernet_export.bundle import SupernetBundle, space_of
from fleetnas.supernet_export.evaluation.image_folder import ImageFolder
from fleetnas.supernet_export.evaluation.image_source import ImageSource, InputSize
from fleetnas.supernet_export.graph import Array
from fleetnas.supernet_export.manifest import Manifest

if TYPE_CHECKING:
    from fleetnas.supernet_export.digits.data import Part

__all__ = ["DigitsImages", "DigitsPart", "ImageFolder", "ImageSource", "open_images"]

DigitsPart: TypeAlias = Literal["train", "calibration", "test"]


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

    def digest(self) -> str:
        """Return a SHA-256 over pixels and labels."""
        content = self._part.images.tobytes() + self._part.labels.tobytes()
        return hashlib.sha256(content).hexdigest()

    def images(self, resolution: int) -> Iterator[Array]:
        """Yield every image, preprocessed."""
        from fleetnas.supernet_export.digits.data import preprocess

        yield from preprocess(self._part.images, resolution)

    def training_images(self, resolution: int, rng: np.random.Generator) -> Iterator[Array]:
        """Yield every image in random order, without augmentation."""
        from fleetnas.supernet_export.digits.data import preprocess

        yield from preprocess(self._part.images[rng.permutation(len(self))], resolution)


def open_images(
    supernet: Manifest | SupernetBundle,
    directory: Path | None,
    part: DigitsPart = "test",
    *,
    some_classes: bool = False,
) -> ImageSource:
    """Open the images for a supernet: those in `directory`, or one part of the built-in digits for one of digits.

    Folders are matched to the classes by name where the manifest has names. With `some_classes` the directory may hold
    only some of them.

    Raises:
        UsageError: a directory is needed, or it does not hold the supernet's classes.
    """
    manifest = supernet if isinstance(supernet, Manifest) else supernet.manifest
    if directory is not None:
        return ImageFolder(
            directory,
            manifest.preprocessing,
            manifest.classes,
            class_names=manifest.class_names,
            input_size=input_size_of(supernet),
            some_classes=some_classes,
        )
    if manifest.is_digits:
        return DigitsImages(part)
    raise UsageError(
        f"a supernet for {manifest.dataset} needs images; give a folder with one folder per class (--images)"
    )


def input_size_of(supernet: Manifest | SupernetBundle) -> InputSize:
    """Return the function from a resolution to the (height, width) of the supernet's input."""
    space = space_of(supernet) if isinstance(supernet, Manifest) else supernet.space
    return space.input_size
