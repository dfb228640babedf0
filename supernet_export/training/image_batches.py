"""Batches of images from a folder: decoded once where they fit into memory, augmented in worker processes.

What an image looks like in an epoch depends on the seed, the epoch and its place in the data set alone, so that neither
the number of workers nor an interruption changes the training.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleetnas.fleet_protocol.errors import TrainingError, UsageError
from fleetnas.supernet_export.evaluation.image_fit import evaluation_view, training_view
from fleetnas.supernet_export.evaluation.image_source import InputSize
from fleetnas.supernet_export.manifest import Preprocessing
from fleetnas.supernet_export.training.batches import Batch, Floats, Integers, TrainingBatches
from fleetnas.supernet_export.training.data_set import LabelledImages
from fleetnas.supernet_export.training.decoded_images import DecodedImages
from fleetnas.supernet_export.training.ranks import Ranks

#: Decoded images of a folder are kept in memory up to this number of bytes, by all processes of this machine together.
CACHE_BYTES = 2 << 30
#: Streams of random numbers: the order of an epoch, and an image's view.
_ORDER, _VIEW = 0, 1
_LEAST_IN_BATCH = 2


class ImageStore:
    """Images of a folder as Pillow reads them, all decoded at once where they fit into `cache_bytes`."""

    def __init__(self, images: LabelledImages, preprocessing: Preprocessing, input_size: InputSize) -> None:
        self.listed, self.preprocessing, self.input_size = images, preprocessing, input_size
        self._images = DecodedImages(images.paths, preprocessing.channels)

    def keep(self, cache_bytes: int = CACHE_BYTES) -> int:
        """Decode all images if they take at most `cache_bytes`; return the bytes that they take or would take."""
        return self._images.decode_all(cache_bytes)

    def training_view(self, index: int, resolution: int, rng: np.random.Generator) -> Floats:
        """Return an image with the preprocessing of training, shape (channels, height, width)."""
        return training_view(self._images[index], self.input_size(resolution), self.preprocessing, rng)

    def evaluation_view(self, index: int, resolution: int) -> Floats:
        """Return an image with the preprocessing of an evaluation, shape (channels, height, width)."""
        return evaluation_view(self._images[index], self.input_size(resolution), self.preprocessing)


@dataclass(frozen=True)
class _Steps:
    """The steps of an epoch as torch's DataLoader takes a data set: each item is a whole batch, this process's part."""

    store: ImageStore
    chosen: Sequence[NDArray[Any]]
    resolutions: Sequence[int]
    seed: int
    epoch: int

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, step: int) -> Any:
        import torch

        if step >= len(self.chosen):
            raise IndexError
        try:
            views = [
                self.store.training_view(
                    int(index),
                    self.resolutions[step],
                    np.random.default_rng([self.seed, _VIEW, self.epoch, int(index)]),
                )
                for index in self.chosen[step]
            ]
        except UsageError as error:  # the loader would wrap an exception into a trace
            return str(error)
        return torch.from_numpy(np.stack(views))


class FolderBatches(TrainingBatches):
    """Batches of a folder's images, every image once an epoch; an epoch's batches differ by one image at most."""

    def __init__(
        self,
        store: ImageStore,
        *,
        resolutions: Sequence[int],
        batch_size: int,
        seed: int,
        workers: int,
        ranks: Ranks,
    ) -> None:
        """Prepare batches of about `batch_size` images, of which this process gets its part.

        Batch norm needs two images in each batch, and every process needs one; so a batch of `batch_size` may be larger
        by one where the images do not divide otherwise.
        """
        self.store, self.resolutions, self.batch_size = store, tuple(resolutions), batch_size
        self.seed, self.workers, self.ranks = seed, workers, ranks

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        images = len(self.store.listed)
        return max(1, min(-(-images // self.batch_size), images // max(_LEAST_IN_BATCH, self.ranks.world)))

    def epoch(self, epoch: int, skip: int, rng: np.random.Generator) -> Iterator[Batch]:
        """Yield an epoch's batches without the first `skip`; `rng` is not used."""
        del rng
        own = np.random.default_rng([self.seed, _ORDER, epoch])
        order = own.permutation(len(self.store.listed)).astype(np.int64)
        whole = np.array_split(order, self.steps)[skip:]
        resolutions = own.choice(self.resolutions, self.steps).tolist()[skip:]
        parts = [self.ranks.share(chosen) for chosen in whole]
        steps = _Steps(self.store, parts, resolutions, self.seed, epoch)
        for resolution, chosen, inputs in zip(resolutions, whole, self._loaded(steps), strict=True):
            first = sum(len(part) for part in np.array_split(chosen, self.ranks.world)[: self.ranks.rank])
            yield Batch(resolution, inputs, self.store.listed.labels[chosen], chosen, first)

    def described(self, chosen: Sequence[int]) -> str:
        """Return the names of images below their folder."""
        return ", ".join(self.store.listed.name(index) for index in chosen)

    def _loaded(self, steps: _Steps) -> Iterator[Floats]:
        from torch import Generator
        from torch.utils.data import DataLoader

        loader = DataLoader(
            steps,
            batch_size=None,
            num_workers=self.workers,
            worker_init_fn=_ignore_interrupts,
            generator=Generator(),  # of its own: the loader draws a seed for workers, which need none
        )
        try:
            for found in loader:
                if isinstance(found, str):
                    raise UsageError(found)
                yield found.numpy()
        except RuntimeError as error:
            raise TrainingError(
                f"a process that prepares images has ended: {' '.join(str(error).split())[:300]}; continue with "
                "--resume and fewer --workers (0: none)"
            ) from None


def validation_shares(images: LabelledImages, ranks: Ranks) -> Integers:
    """Return the indices of the images that this process validates with."""
    return np.arange(ranks.rank, len(images), ranks.world)


def _ignore_interrupts(worker: int) -> None:
    """Leave Ctrl-C, which the terminal sends to every process, to the training process."""
    del worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)
