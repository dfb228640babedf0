"""The images of one network of a fine-tuning: it is calibrated and validated on them like every winner."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.supernet_export.bundle import SupernetBundle
from fleetnas.supernet_export.calibration.estimate import estimate_statistics
from fleetnas.supernet_export.emitters.onnx import emit_onnx
from fleetnas.supernet_export.evaluation.classifier import evaluate
from fleetnas.supernet_export.evaluation.image_source import ImageSource
from fleetnas.supernet_export.evaluation.images import open_images
from fleetnas.supernet_export.graph import Graph
from fleetnas.supernet_export.graph_tensors import graph_tensors, with_tensors
from fleetnas.supernet_export.training.distillation_batches import NetworkInput

#: Winners are calibrated on the same images in the same order, so that a fine-tuned subnet's file is the same with
#: calibration images and without.
_CALIBRATION_SEED, _CALIBRATION_LIMIT = 0, 2000

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class NetworkImages:
    """Images at the resolution and with the preprocessing of one architecture of a bundle."""

    bundle: SupernetBundle
    architecture: Architecture
    calibration: ImageSource
    validation: ImageSource | None

    @classmethod
    def open(
        cls, bundle: SupernetBundle, architecture: Architecture, training: Path | None, validation: Path | None
    ) -> NetworkImages:
        """Open folders of images; without them, the parts of the built-in digits for a bundle of digits.

        `UsageError` where a folder is needed, or does not hold the bundle's classes.
        """
        calibrating = open_images(bundle, training, "calibration")
        has_validation = validation is not None or (training is None and bundle.manifest.is_digits)
        return cls(
            bundle, architecture, calibrating, open_images(bundle, validation, "test") if has_validation else None
        )

    @property
    def input(self) -> NetworkInput:
        """The images that the network takes."""
        resolution = self.architecture.r
        return NetworkInput(resolution, self.bundle.space.input_size(resolution), self.bundle.manifest.preprocessing)

    @property
    def calibration_count(self) -> int:
        """Number of images that `calibrated` reads."""
        return min(_CALIBRATION_LIMIT, len(self.calibration))

    def calibrated(self, graph: Graph, after_images: Callable[[int], None], threads: int) -> Graph:
        """Return the network with batch-norm statistics re-estimated; `after_images` takes numbers of images read."""
        batches = self.calibration.calibration_batches(
            self.architecture.r, np.random.default_rng(_CALIBRATION_SEED), limit=_CALIBRATION_LIMIT
        )
        statistics = estimate_statistics(graph, _counted(batches, after_images, len), threads=threads)
        return with_tensors(graph, graph_tensors(graph).__getitem__, statistics)

    def accuracy(self, graph: Graph, after_images: Callable[[int], None], threads: int) -> float | None:
        """Return top-1 of the exported file, a fraction, on the validation images; None where there are none."""
        if self.validation is None:
            return None
        images = _counted(self.validation.images(self.architecture.r), after_images, lambda image: 1)
        return evaluate(emit_onnx(graph), images, self.validation.labels, threads=threads)


def _counted(
    items: Iterable[_Item], after_images: Callable[[int], None], count: Callable[[_Item], int]
) -> Iterator[_Item]:
    for item in items:
        yield item
        after_images(count(item))
