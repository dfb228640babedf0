"""Define the interface of labelled images, which calibrate and evaluate subnets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import numpy as np

from fleetnas.supernet_export.evaluation.choices import CALIBRATION_LIMIT as CALIBRATION_LIMIT
from fleetnas.supernet_export.graph import Array

#: Height and width of the network's input at a resolution, both in pixels.
InputSize: TypeAlias = Callable[[int], tuple[int, int]]

#: Images of one calibration batch.
CALIBRATION_BATCH = 100


def square(resolution: int) -> tuple[int, int]:
    """Return the input size of networks that see square images."""
    return resolution, resolution


class ImageSource(ABC):
    """Labelled images. Every image comes preprocessed, float32 of shape (channels, height, width)."""

    labels: Sequence[int]

    def __len__(self) -> int:
        return len(self.labels)

    def check(self, progress: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Read every image once; `UsageError` names those that cannot be read, such as truncated ones.

        `progress` is given the images read and the images in all.
        """
        progress(len(self), len(self))

    @abstractmethod
    def digest(self) -> str:
        """Return a SHA-256 over names, classes and content of all images: equal on machines that see the same ones."""

    @abstractmethod
    def images(self, resolution: int) -> Iterator[Array]:
        """Yield every image with the preprocessing of an evaluation."""

    @abstractmethod
    def training_images(self, resolution: int, rng: np.random.Generator) -> Iterator[Array]:
        """Yield every image in random order with the preprocessing of training, for calibration."""

    def calibration_batches(
        self,
        resolution: int,
        rng: np.random.Generator,
        *,
        limit: int = CALIBRATION_LIMIT,
        batch: int = CALIBRATION_BATCH,
    ) -> Iterator[Array]:
        """Yield at most `limit` training images in batches (n, channels, height, width); OFA takes 2,000."""
        batched: list[Array] = []
        for _, image in zip(range(limit), self.training_images(resolution, rng), strict=False):
            batched.append(image)
            if len(batched) == batch:
                yield np.stack(batched)
                batched = []
        if batched:
            yield np.stack(batched)
