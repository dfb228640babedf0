"""Images to calibrate, to evaluate and to select winners on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fleetnas.coordinator.app.request import ImageFolders
from fleetnas.coordinator.records.accuracy_order import SELECTED_ON_REPORTED
from fleetnas.coordinator.records.plan import same_folder
from fleetnas.fleet_protocol.errors import UsageError
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
        if directory is None and not manifest.is_digits:
            return None
        found = open_images(bundle, directory, part, some_classes=folders.some_classes)
        found.check(progress)
        return found

    calibration = source(folders.calibration, "calibration")
    if folders.evaluation is not None and folders.evaluation == folders.calibration:
        return calibration, calibration
    return calibration, source(folders.evaluation, "test")


def checked_selection_images(
    bundle: SupernetBundle,
    folders: ImageFolders,
    opened: tuple[ImageSource | None, ImageSource | None],
    rerank: int,
    progress: ImageProgress = lambda done, total: None,
) -> ImageSource | None:
    """Open the images that choose among the `rerank` best candidates; None with `rerank` 0.

    They are a folder, or the built-in digits' calibration part, on which no weight was trained. `opened` are the images
    to calibrate and to evaluate on, which are not read again where the folder is the same.

    Raises:
        UsageError: there are candidates to choose among and no images, or the reverse; or images cannot be read.
    """
    if not rerank:
        if folders.selection is not None:
            raise UsageError("selection images choose among candidates; say among how many per target: --rerank K")
        return None
    if folders.selection is None and not bundle.manifest.is_digits:
        raise UsageError(
            f"--rerank {rerank} chooses among candidates by their accuracy on images; give --selection-images DIR, a "
            "folder of images per class, others than those of --evaluation-images"
        )
    for known, directory in zip(opened, (folders.calibration, folders.evaluation), strict=True):
        if known is not None and same_folder(folders.selection, directory):
            return known
    found = open_images(bundle, folders.selection, "calibration", some_classes=folders.some_classes)
    found.check(progress)
    return found


def selection_warnings(folders: ImageFolders) -> list[str]:
    """Return warnings about selection images that are used for something else as well."""
    found = []
    if same_folder(folders.selection, folders.evaluation):
        found.append(SELECTED_ON_REPORTED)
    if same_folder(folders.selection, folders.calibration):
        found.append(
            "WARNING: winners are selected on the calibration images: where these are training images, nearly every "
            "candidate answers them right, and they choose badly; give --selection-images a folder of images that no "
            "training saw"
        )
    return found
