"""Read a folder of images, one folder per class."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np

from fleetnas.fleet_protocol.cores import core_count
from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.supernet_export.evaluation.class_folders import (
    MOST_NAMED,
    named_folders,
    numbered_folders,
)
from fleetnas.supernet_export.evaluation.image_file import SUFFIXES, check_channels, fault, open_image, pillow
from fleetnas.supernet_export.evaluation.image_fit import evaluation_view, training_view
from fleetnas.supernet_export.evaluation.image_source import ImageSource, InputSize, square
from fleetnas.supernet_export.graph import Array
from fleetnas.supernet_export.manifest import Preprocessing

#: Decoding releases the interpreter's lock.
_CHECK_THREADS = 8

_log = logging.getLogger("fleetnas.supernet_export")


class ImageFolder(ImageSource):
    """Images in `directory/<class>/<image>`; folders whose name begins with a dot are ignored, as are such files.

    File managers and notebooks make them.
    """

    def __init__(
        self,
        directory: Path,
        preprocessing: Preprocessing,
        classes: int,
        *,
        class_names: Sequence[str] | None = None,
        input_size: InputSize = square,
        some_classes: bool = False,
    ) -> None:
        """List the images.

        With `class_names` each folder is matched to the class of its name; without, the folders are numbered in the
        order of their names, like ImageNet's. `input_size` gives the (height, width) of the images at a resolution.
        With `some_classes` and class names, classes may be missing.

        Raises:
            UsageError: the folders are not those of the classes, they hold no images, or images of that number of
                channels cannot be read.
        """
        check_channels(preprocessing.channels)
        self.preprocessing = preprocessing
        self._directory = directory
        self._input_size = input_size
        if class_names is not None:
            folders = named_folders(directory, class_names, some_classes=some_classes)
        else:
            if some_classes:
                raise UsageError(
                    "--some-classes needs class names, and this supernet has none: its folders are numbered in the "
                    "order of their names; add the missing folders"
                )
            folders = numbered_folders(directory, classes)
            tell_once_that_folders_are_numbered()
        self._paths: list[Path] = []
        labels: list[int] = []
        for folder in folders:
            self._paths += folder.images
            labels += [folder.label] * len(folder.images)
        if not labels:
            raise UsageError(f"the class folders in {directory} hold no images ({', '.join(sorted(SUFFIXES))})")
        self.labels = labels

    @property
    def paths(self) -> Sequence[Path]:
        """The image files, in the order of `labels`."""
        return self._paths

    def digest(self) -> str:
        """Read all files; return a SHA-256 over their names below the folder and their content."""
        whole = hashlib.sha256()
        for path in self._paths:
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            whole.update(f"{path.relative_to(self._directory).as_posix()}\0{content}\n".encode())
        return whole.hexdigest()

    def images(self, resolution: int) -> Iterator[Array]:
        """Yield every image with the preprocessing of an evaluation: the centre, or the whole image."""
        size = self._input_size(resolution)
        for path in self._paths:
            yield evaluation_view(open_image(path, self.preprocessing.channels), size, self.preprocessing)

    def training_images(self, resolution: int, rng: np.random.Generator) -> Iterator[Array]:
        """Yield images with OFA's preprocessing for calibration: random crop and flip, jittered colours."""
        size = self._input_size(resolution)
        for index in rng.permutation(len(self._paths)):
            image = open_image(self._paths[index], self.preprocessing.channels)
            yield training_view(image, size, self.preprocessing, rng)

    def check(self, progress: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Decode every image in threads; `UsageError` names those that cannot be read."""
        pillow()
        faulty: list[tuple[Path, str]] = []
        with ThreadPoolExecutor(min(_CHECK_THREADS, core_count())) as readers:
            for done, (path, found) in enumerate(zip(self._paths, readers.map(fault, self._paths), strict=True), 1):
                if found:
                    faulty.append((path, found))
                progress(done, len(self._paths))
        if faulty:
            named = ", ".join(f"{path.relative_to(self._directory)} ({found})" for path, found in faulty[:MOST_NAMED])
            rest = f" and {len(faulty) - MOST_NAMED:,} more" if len(faulty) > MOST_NAMED else ""
            raise UsageError(
                f"{len(faulty):,} of {len(self._paths):,} images in {self._directory} cannot be read: {named}{rest}; "
                "remove or replace them"
            )


@cache
def tell_once_that_folders_are_numbered() -> None:
    """Warn that a supernet without class names takes folders by their position; once per process."""
    _log.warning(
        "this supernet has no class names: class folders are numbered in the order of their names, so that a renamed "
        "folder would change its class"
    )
