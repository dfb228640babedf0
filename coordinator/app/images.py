"""Images to calibrate and to evaluate winners on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fleetnas.coordinator.app.request import ImageFolders
from fleetnas.supernet_export.bundle import SupernetBundle
from fleetnas.supernet_export.evaluation.images import DigitsPart, ImageSource, open_images

#: Called with the number of images checked and the number of images in all.
ImageProgress = Callable[[int, int], None]


def checked_images(
    bundle: SupernetBundle, folders: ImageFolders, progress: ImageProgress = lambda done, total: None
) -> tuple[ImageSource | None, ImageSource | None]:
    """Open the images to calibrate and to evaluate on: folders, or the built-in digits' own parts.

    Every image is read once; `UsageError` names those that cannot be read.
    """
    manifest = bundle.manifest

    def source(directory: Path | None, part: DigitsPart) -> ImageSource | None:
        if directory is None and manifest.dataset != "digits":
            return None
        found = open_images(bundle, directory, part, some_classes=folders.some_classes)
        found.check(progress)
        return found

    calibration = source(folders.calibration, "calibration")
    if folders.evaluation is not None and folders.evaluation == folders.calibration:
        return calibration, calibration
    return calibration, source(folders.evaluation, "test")
