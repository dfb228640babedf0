"""Batches of training images: what a trainer takes, and those of images in memory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]
#: Images (n, ...) and a resolution to network input (n, channels, resolution, resolution).
Preprocess = Callable[[Floats, int], Floats]
#: Images (n, ...) to distorted images of the same shape.
Augment = Callable[[Floats, np.random.Generator], Floats]


@dataclass(frozen=True)
class Batch:
    """One step's images, of shape (n, channels, height, width), and their classes.

    Where several processes train together, `inputs` is this process's part of the batch and `labels` are all; `first`
    is the place of this part in them.
    """

    resolution: int
    inputs: Floats
    labels: Integers
    chosen: Integers  #: indices of all images of the batch in the data set
    first: int = 0

    @property
    def own_labels(self) -> Integers:
        """Classes of `inputs`."""
        return self.labels[self.first : self.first + len(self.inputs)]


class TrainingBatches(ABC):
    """A data set as batches: every epoch shows every image once."""

    @property
    @abstractmethod
    def steps(self) -> int:
        """Steps of an epoch."""

    @abstractmethod
    def epoch(self, epoch: int, skip: int, rng: np.random.Generator) -> Iterator[Batch]:
        """Yield the batches of an epoch, counted from 0, without the first `skip`.

        `rng` is the trainer's own generator, from which it also draws subnets.
        """

    def described(self, chosen: Sequence[int]) -> str:
        """Return the names of images by their indices, for messages."""
        return ", ".join(f"image {index}" for index in chosen)


class MemoryBatches(TrainingBatches):
    """Images in memory, distorted and resized in numpy; all randomness is the trainer's."""

    def __init__(
        self,
        images: Floats,
        labels: Integers,
        *,
        resolutions: Sequence[int],
        batch_size: int,
        preprocess: Preprocess,
        augment: Augment,
    ) -> None:
        self.images, self.labels = images, labels
        self.resolutions, self.batch_size = resolutions, batch_size
        self.preprocess, self.augment = preprocess, augment

    @property
    def steps(self) -> int:
        """Steps of an epoch; the last may have fewer images."""
        return -(-len(self.labels) // self.batch_size)

    def epoch(self, epoch: int, skip: int, rng: np.random.Generator) -> Iterator[Batch]:
        """Yield an epoch's batches; `skip` must be 0, as what it skips is drawn from `rng` too."""
        assert skip == 0
        order = rng.permutation(len(self.labels))
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            resolution = int(rng.choice(self.resolutions))
            distorted = self.augment(self.images[chosen], rng)
            yield Batch(resolution, self.preprocess(distorted, resolution), self.labels[chosen], chosen)
