"""Build the files that ship: the coordinator calibrates, emits and evaluates subnets exactly as agents build them."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np

from fleetnas.coordinator.records.stored import EvaluationRecord, ImagePart
from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.fleet_protocol.messages import RuntimeSetting
from fleetnas.supernet_export.bundle import SupernetBundle
from fleetnas.supernet_export.calibration.blob import save_calibration
from fleetnas.supernet_export.calibration.subnet import CALIBRATION_SEED, calibrate_subnet
from fleetnas.supernet_export.emitters.onnx import model_sha256
from fleetnas.supernet_export.evaluation.answering import KeptImages, answer
from fleetnas.supernet_export.evaluation.answers import ClassAnswers
from fleetnas.supernet_export.evaluation.classifier import open_classifier
from fleetnas.supernet_export.evaluation.images import ImageSource
from fleetnas.supernet_export.graph import Array
from fleetnas.supernet_export.model_file import build_model
from fleetnas.supernet_export.slicing.subnet import slice_subnet

#: Architecture's fingerprint, runtime and precision.
FileKey: TypeAlias = tuple[str, str, str]


@dataclass(frozen=True)
class CalibratedModel:
    """A winner's file by its hash, and the statistics from which the same bytes are built again with the bundle."""

    architecture: Architecture
    setting: RuntimeSetting
    sha256: str
    calibration: bytes | None


class WinnerBuilder(Protocol):
    """Builds winners' files. Called from worker threads, and from the campaign's thread where it answers at once."""

    def calibrate(self, architecture: Architecture, setting: RuntimeSetting) -> CalibratedModel:
        """Return the file of `architecture` for `setting`, with its batch norm re-estimated."""

    def calibrates_at_once(self, architecture: Architecture, setting: RuntimeSetting) -> bool:
        """Whether `calibrate` has this file already."""

    def evaluates_at_once(self, model: CalibratedModel) -> bool:
        """Whether `accuracy` has nothing to run for it."""

    def file(self, model: CalibratedModel) -> bytes:
        """Return the bytes whose hash is the model's."""

    def accuracy(self, model: CalibratedModel) -> tuple[float, int] | None:
        """Return top-1 of the file on held-out images, a fraction, and their number; None where there are no images.

        `RuntimeUnavailableError` or `MissingDependencyError` where the runtime of the file is not installed here.
        """

    def answers(self, model: CalibratedModel, part: ImagePart) -> ClassAnswers | None:
        """Return what the file answers to the images of a part; None where there are none. Raises the same."""

    def known_answers(
        self, architecture: Architecture, setting: RuntimeSetting, part: ImagePart
    ) -> ClassAnswers | None:
        """Return the answers of a file where they are known already, without building it; None otherwise."""

    def adopt(self, evaluations: Iterable[EvaluationRecord]) -> None:
        """Take over the evaluations of a stored run, which need not be made again."""


class BundleWinnerBuilder:
    """Winners' files out of a supernet bundle."""

    def __init__(
        self,
        bundle: SupernetBundle,
        calibration_images: ImageSource | None,
        evaluation_images: ImageSource | None,
        selection_images: ImageSource | None = None,
    ) -> None:
        """Build files of winners in `bundle`.

        Without calibration images a winner keeps the supernet's statistics; without evaluation images it has no
        evaluated accuracy; without selection images it is not chosen by its accuracy.
        """
        self._bundle = bundle
        self._calibration_images = calibration_images
        given: dict[ImagePart, ImageSource | None] = {"evaluation": evaluation_images, "selection": selection_images}
        self._images = {part: KeptImages(images) for part, images in given.items() if images is not None}
        self._calibrated: dict[FileKey, CalibratedModel] = {}
        self._answers: dict[tuple[FileKey, ImagePart], ClassAnswers] = {}
        # Two workers may want the same file; building or evaluating it once is enough.
        self._locks: dict[FileKey, threading.Lock] = {}

    def calibrates_at_once(self, architecture: Architecture, setting: RuntimeSetting) -> bool:
        """Whether `calibrate` has this file already."""
        return file_key(architecture, setting) in self._calibrated

    def evaluates_at_once(self, model: CalibratedModel) -> bool:
        """Whether `accuracy` has nothing to run for it."""
        return "evaluation" not in self._images or (_key_of(model), "evaluation") in self._answers

    def calibrate(self, architecture: Architecture, setting: RuntimeSetting) -> CalibratedModel:
        """Return the file of `architecture` for `setting`, calibrated once."""
        key = file_key(architecture, setting)
        if key in self._calibrated:  # while another is being calibrated too
            return self._calibrated[key]
        with self._lock_of(key):
            found = self._calibrated.get(key)
            if found is None:
                calibration = self._calibration(architecture, setting)
                file = build_model(self._bundle, architecture, calibration, setting)
                found = CalibratedModel(architecture, setting, model_sha256(file), calibration)
                self._calibrated[key] = found
            return found

    def file(self, model: CalibratedModel) -> bytes:
        """Return the bytes whose hash is the model's."""
        return build_model(self._bundle, model.architecture, model.calibration, model.setting)

    def accuracy(self, model: CalibratedModel) -> tuple[float, int] | None:
        """Return top-1 of the file on the evaluation images, a fraction, and their number; None without images."""
        found = self.answers(model, "evaluation")
        return None if found is None else (found.accuracy, found.images)

    def accuracy_of_file(self, content: bytes, resolution: int) -> tuple[float, int] | None:
        """Return the same of a model file of the user's own; None without images, or where it has other classes."""
        images, classes = self._images.get("evaluation"), self._bundle.manifest.classes
        if images is None:
            return None
        first = next(images.images(resolution))
        if len(open_classifier(content)(first)) != classes:
            return None
        found = answer(content, images.images(resolution), images.labels, classes)
        return found.accuracy, found.images

    def answers(self, model: CalibratedModel, part: ImagePart) -> ClassAnswers | None:
        """Return what the file answers to the images of a part, found out once; None without images."""
        images, key = self._images.get(part), _key_of(model)
        if images is None:
            return None
        with self._lock_of(key):
            found = self._answers.get((key, part))
            if found is None:
                shown, labels = images.images(model.architecture.r), images.labels
                found = answer(self.file(model), shown, labels, self._bundle.manifest.classes)
                self._answers[key, part] = found
            return found

    def known_answers(
        self, architecture: Architecture, setting: RuntimeSetting, part: ImagePart
    ) -> ClassAnswers | None:
        """Return the answers of a file where they are known already, without building it; None otherwise."""
        return self._answers.get((file_key(architecture, setting), part))

    def adopt(self, evaluations: Iterable[EvaluationRecord]) -> None:
        """Take over stored evaluations, unless they are of other images than those that are here now."""
        for evaluation in evaluations:
            images = self._images.get(evaluation.part)
            if images is not None and np.array_equal(evaluation.class_answers.labels, images.labels):
                self._answers[evaluation.file_key, evaluation.part] = evaluation.class_answers

    def _lock_of(self, key: FileKey) -> threading.Lock:
        return self._locks.setdefault(key, threading.Lock())  # one step, whichever threads ask

    def _calibration(self, architecture: Architecture, setting: RuntimeSetting) -> bytes | None:
        images = self._calibration_images
        if images is None:
            return None

        def batches() -> Iterator[Array]:
            return images.calibration_batches(architecture.r, np.random.default_rng(CALIBRATION_SEED))

        found = calibrate_subnet(
            lambda chosen, statistics: slice_subnet(self._bundle, chosen, statistics),
            architecture,
            batches,
            setting.precision,
        )
        return save_calibration(found)


def file_key(architecture: Architecture, setting: RuntimeSetting) -> FileKey:
    """Return the key of a winner's file: threads and the like change its run, not its content."""
    return architecture.fingerprint, setting.runtime, setting.precision


def _key_of(model: CalibratedModel) -> FileKey:
    return file_key(model.architecture, model.setting)
