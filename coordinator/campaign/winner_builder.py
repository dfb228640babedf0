"""Build the files that ship: the coordinator calibrates, emits and evaluates subnets exactly as agents build them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.fleet_protocol.messages import RuntimeSetting
from fleetnas.supernet_export.bundle import SupernetBundle
from fleetnas.supernet_export.calibration.blob import save_calibration
from fleetnas.supernet_export.calibration.subnet import CALIBRATION_SEED, calibrate_subnet
from fleetnas.supernet_export.emitters.onnx import model_sha256
from fleetnas.supernet_export.evaluation.classifier import evaluate
from fleetnas.supernet_export.evaluation.images import ImageSource
from fleetnas.supernet_export.graph import Array
from fleetnas.supernet_export.model_file import build_model
from fleetnas.supernet_export.slicing.subnet import slice_subnet


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


class BundleWinnerBuilder:
    """Winners' files out of a supernet bundle."""

    def __init__(
        self, bundle: SupernetBundle, calibration_images: ImageSource | None, evaluation_images: ImageSource | None
    ) -> None:
        """Build files of winners in `bundle`.

        Without calibration images a winner keeps the supernet's statistics; without evaluation images it has no
        evaluated accuracy.
        """
        self._bundle = bundle
        self._calibration_images = calibration_images
        self._evaluation_images = evaluation_images
        self._calibrated: dict[tuple[str, str, str], CalibratedModel] = {}
        self._accuracies: dict[str, tuple[float, int]] = {}
        # Two workers may want the same winner; calibrating it once is enough.
        self._lock = threading.Lock()

    def calibrates_at_once(self, architecture: Architecture, setting: RuntimeSetting) -> bool:
        """Whether `calibrate` has this file already."""
        return _key(architecture, setting) in self._calibrated

    def evaluates_at_once(self, model: CalibratedModel) -> bool:
        """Whether `accuracy` has nothing to run for it."""
        return self._evaluation_images is None or model.sha256 in self._accuracies

    def calibrate(self, architecture: Architecture, setting: RuntimeSetting) -> CalibratedModel:
        """Return the file of `architecture` for `setting`, calibrated once."""
        key = _key(architecture, setting)
        if key in self._calibrated:  # while another is being calibrated too
            return self._calibrated[key]
        with self._lock:
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
        images = self._evaluation_images
        if images is None:
            return None
        if model.sha256 in self._accuracies:
            return self._accuracies[model.sha256]
        with self._lock:
            found = self._accuracies.get(model.sha256)
            if found is None:
                resolution = model.architecture.r
                found = evaluate(self.file(model), images.images(resolution), images.labels), len(images)
                self._accuracies[model.sha256] = found
            return found

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


def _key(architecture: Architecture, setting: RuntimeSetting) -> tuple[str, str, str]:
    """Return the key of a winner's file: threads and the like change its run, not its content."""
    return architecture.fingerprint, setting.runtime, setting.precision
