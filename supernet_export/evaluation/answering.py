"""Run a model file on labelled images, and keep what it answers."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from fleetnas.supernet_export.evaluation.answers import ClassAnswers
from fleetnas.supernet_export.evaluation.classifier import open_classifier
from fleetnas.supernet_export.evaluation.images import ImageSource
from fleetnas.supernet_export.graph import Array

#: Bytes of preprocessed images that are kept for the next file of the same resolution.
_MOST_KEPT = 512 * 1024**2


def answer(
    model: bytes, images: Iterable[Array], labels: Sequence[int], classes: int, *, threads: int = 1
) -> ClassAnswers:
    """Run a model file of batch 1, ONNX or TFLite, on images (channels, height, width), and keep its answers.

    Raises:
        UsageError: there are no images.
        RuntimeUnavailableError: the runtime of the file does not load it.
        MissingDependencyError: that runtime is not installed.
    """
    classify = open_classifier(model, threads=threads)
    return ClassAnswers.of(classes, labels, [int(np.argmax(classify(image))) for image in images])


class KeptImages:
    """Images that are decoded once for all files of one resolution, where they fit into memory."""

    def __init__(self, source: ImageSource) -> None:
        self._source = source
        self._lock = threading.Lock()
        self._resolution: int | None = None
        self._kept: list[Array] = []

    @property
    def labels(self) -> Sequence[int]:
        """Class of each image."""
        return self._source.labels

    def __len__(self) -> int:
        return len(self._source)

    def images(self, resolution: int) -> Iterator[Array]:
        """Yield every image, float32 (channels, height, width), with the preprocessing of an evaluation."""
        with self._lock:
            kept = self._kept if self._resolution == resolution else None
        if kept is not None:
            yield from kept
            return
        found: list[Array] | None = []
        size = 0
        for image in self._source.images(resolution):
            yield image
            size += image.nbytes
            if found is not None:
                found.append(image)
            if size > _MOST_KEPT:
                found = None
        if found is not None:
            with self._lock:
                self._resolution, self._kept = resolution, found
