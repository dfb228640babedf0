"""Batches of training images for a student and its teacher: one random view of each image, at the size of either."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fleetnas.fleet_protocol.cores import core_count
from fleetnas.supernet_export.evaluation.image_fit import training_view
from fleetnas.supernet_export.manifest import Preprocessing
from fleetnas.supernet_export.training.batches import Floats, Integers
from fleetnas.supernet_export.training.decoded_images import DecodedImages

#: Threads that read images, and batches that they are ahead of the training.
_READERS, _AHEAD = 8, 2
#: Decoded images are kept while all together take no more bytes than this.
_CACHE_BYTES = 2**30


@dataclass(frozen=True)
class NetworkInput:
    """Images that one network takes."""

    resolution: int
    size: tuple[int, int]  #: height and width in pixels
    preprocessing: Preprocessing


@dataclass(frozen=True)
class DistillationBatch:
    """One step's images; element k of `inputs`, (n, channels, height, width), is for network k."""

    inputs: tuple[Floats, ...]
    labels: Integers
    chosen: Integers  #: indices of the images in the data set


class DistillationBatches(ABC):
    """A data set as batches: every epoch shows every image once, in an order of its own.

    A batch is a function of the seed, the epoch and its place, so that a resumed training sees the same ones.
    """

    def __init__(self, labels: Sequence[int], *, batch_size: int, seed: int) -> None:
        """`batch_size` is approximate: an epoch is cut into parts of equal size, of two images at least."""
        self.labels: Integers = np.asarray(labels, np.int64)
        self.seed = seed
        self.steps = min(-(-len(self.labels) // batch_size), max(1, len(self.labels) // 2))

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[DistillationBatch]:
        """Yield the batches of an epoch, counted from 0, without the first `skip`."""
        for chosen in self.parts(epoch)[skip:]:
            yield DistillationBatch(self.views(chosen, epoch), self.labels[chosen], chosen)

    def parts(self, epoch: int) -> list[Integers]:
        """Return the images of every batch of an epoch, by their indices."""
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.labels))
        return np.array_split(order, self.steps)

    @abstractmethod
    def views(self, chosen: Integers, epoch: int) -> tuple[Floats, ...]:
        """Return random views of images, one array (n, channels, height, width) per network."""

    def name_of(self, index: int) -> str:
        """Return the name of an image, for messages."""
        return f"image {index}"

    def digest(self) -> str:
        """Return a SHA-256 of the images' names, sizes and classes: equal for the same data set."""
        found = hashlib.sha256()
        for index, label in enumerate(self.labels.tolist()):
            found.update(f"{self.signature(index)}\t{label}\n".encode(errors="surrogateescape"))
        return found.hexdigest()

    def signature(self, index: int) -> str:
        """Return a text that differs for different images."""
        return str(index)


class FolderBatches(DistillationBatches):
    """Image files, read by threads ahead of the training; small data sets stay decoded in memory."""

    def __init__(
        self,
        paths: Sequence[Path],
        labels: Sequence[int],
        networks: Sequence[NetworkInput],
        *,
        batch_size: int,
        seed: int,
    ) -> None:
        """`networks` take the same number of channels."""
        super().__init__(labels, batch_size=batch_size, seed=seed)
        self._paths, self._networks = list(paths), tuple(networks)
        self._images = DecodedImages(self._paths, self._networks[0].preprocessing.channels, _CACHE_BYTES)

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[DistillationBatch]:
        """Yield the batches of an epoch, counted from 0, without the first `skip`."""
        waiting: deque[tuple[Integers, list[Future[tuple[Floats, ...]]]]] = deque()
        with ThreadPoolExecutor(min(_READERS, core_count())) as readers:
            try:
                for chosen in self.parts(epoch)[skip:]:
                    waiting.append((chosen, [readers.submit(self._view, int(index), epoch) for index in chosen]))
                    if len(waiting) > _AHEAD:
                        yield self._batch(*waiting.popleft())
                while waiting:
                    yield self._batch(*waiting.popleft())
            finally:
                for _, futures in waiting:
                    for future in futures:
                        future.cancel()

    def views(self, chosen: Integers, epoch: int) -> tuple[Floats, ...]:
        """Return random views of images, one array (n, channels, height, width) per network."""
        found = [self._view(int(index), epoch) for index in chosen]
        return tuple(np.stack(images) for images in zip(*found, strict=True))

    def name_of(self, index: int) -> str:
        """Return the path of an image."""
        return str(self._paths[index])

    def signature(self, index: int) -> str:
        """Return the class folder and name of an image file, and its size in bytes."""
        path = self._paths[index]
        return f"{path.parent.name}/{path.name} {path.stat().st_size}"

    def _batch(self, chosen: Integers, futures: list[Future[tuple[Floats, ...]]]) -> DistillationBatch:
        found = [future.result() for future in futures]
        inputs = tuple(np.stack(images) for images in zip(*found, strict=True))
        return DistillationBatch(inputs, self.labels[chosen], chosen)

    def _view(self, index: int, epoch: int) -> tuple[Floats, ...]:
        image = self._images[index]
        # The same draws for every network: the teacher sees what the student sees.
        return tuple(
            training_view(image, network.size, network.preprocessing, np.random.default_rng([self.seed, epoch, index]))
            for network in self._networks
        )


class DigitsBatches(DistillationBatches):
    """The training part of the built-in digits, distorted like in the training of the built-in supernet."""

    def __init__(self, networks: Sequence[NetworkInput], *, batch_size: int, seed: int) -> None:
        from fleetnas.supernet_export.digits.data import load_digits

        self._images = load_digits().train.images
        super().__init__(load_digits().train.labels.tolist(), batch_size=batch_size, seed=seed)
        self._networks = tuple(networks)

    def views(self, chosen: Integers, epoch: int) -> tuple[Floats, ...]:
        """Return distorted digits, one array (n, 1, side, side) per network."""
        from fleetnas.supernet_export.digits.data import preprocess
        from fleetnas.supernet_export.training.digits import DISTORTION

        rng = np.random.default_rng([self.seed, epoch, *chosen[:1].tolist()])
        distorted = DISTORTION(self._images[chosen], rng)
        return tuple(preprocess(distorted, network.resolution) for network in self._networks)
