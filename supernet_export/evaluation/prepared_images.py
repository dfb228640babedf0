"""Decode calibration and evaluation images once per resolution, for many subnets and many processes.

Each subnet of an evaluation wants the same images. Prepared ones lie in `.npy` files that every worker maps, so that
the system's page cache is their only copy in memory.
"""

from __future__ import annotations

import fcntl
import math
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import numpy as np

from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.supernet_export.calibration.subnet import CALIBRATION_SEED
from fleetnas.supernet_export.evaluation.image_source import CALIBRATION_BATCH, CALIBRATION_LIMIT, ImageSource
from fleetnas.supernet_export.graph import Array


class PreparedImages:
    """Images of two sources as arrays (n, channels, height, width), float32, made once per resolution."""

    def __init__(
        self,
        calibration: ImageSource,
        evaluation: ImageSource,
        folder: Path | None = None,
        *,
        calibration_count: int = CALIBRATION_LIMIT,
    ) -> None:
        """Keep arrays in files of `folder`, which several processes may share; without one, in memory.

        At most `calibration_count` images calibrate a subnet.
        """
        self._calibration_count = min(calibration_count, len(calibration))
        self._calibration = calibration
        self._evaluation = evaluation
        self._folder = folder
        self._arrays: dict[tuple[str, int], Array] = {}
        self._lock = threading.Lock()

    @property
    def labels(self) -> list[int]:
        """Class of each evaluation image."""
        return list(self._evaluation.labels)

    def evaluation(self, resolution: int) -> Array:
        """Return all evaluation images, preprocessed."""
        return self._array("evaluation", resolution)

    def calibration_batches(self, resolution: int) -> Iterator[Array]:
        """Yield the batches that `ImageSource.calibration_batches` gives a winner."""
        images = self._array("calibration", resolution)
        for start in range(0, len(images), CALIBRATION_BATCH):
            yield np.ascontiguousarray(images[start : start + CALIBRATION_BATCH])

    def _array(self, kind: str, resolution: int) -> Array:
        with self._lock:
            found = self._arrays.get((kind, resolution))
            if found is None:
                found = self._made(kind, resolution)
                self._arrays[kind, resolution] = found
            return found

    def _made(self, kind: str, resolution: int) -> Array:
        if self._folder is None:
            return np.stack(list(self._images(kind, resolution)))
        path = self._folder / f"{kind}-{resolution}.npy"
        try:
            if not path.exists():
                self._folder.mkdir(parents=True, exist_ok=True)
                with _alone(path.with_suffix(".lock")):
                    if not path.exists():  # another process may have made it meanwhile
                        _write(path, self._images(kind, resolution), self._count(kind))
            mapped: Array = np.load(path, mmap_mode="r")
        except OSError as error:
            raise UsageError(
                f"images cannot be prepared in {self._folder}: {error}; give a folder where this user can write "
                "(--cache DIR; for a Dask worker, its --local-directory)"
            ) from None
        return mapped

    def _count(self, kind: str) -> int:
        return len(self._evaluation) if kind == "evaluation" else self._calibration_count

    def _images(self, kind: str, resolution: int) -> Iterator[Array]:
        if kind == "evaluation":
            return self._evaluation.images(resolution)
        batches = self._calibration.calibration_batches(
            resolution, np.random.default_rng(CALIBRATION_SEED), limit=self._calibration_count, batch=CALIBRATION_BATCH
        )
        return chain.from_iterable(batches)


def _write(path: Path, images: Iterator[Array], count: int) -> None:
    """Write `count` images of one shape as an array, image by image; the file appears when it is complete."""
    first = next(images)
    shape = (count, *first.shape)
    needed, free = 4 * math.prod(shape), shutil.disk_usage(path.parent).free
    if needed > free:
        raise UsageError(
            f"{count:,} prepared images of {first.shape[1]} x {first.shape[2]} pixels take {needed / 1e9:.1f} GB and "
            f"{path.parent} has {free / 1e9:.1f} GB free; give a folder on a larger disk (--cache DIR; "
            "for a Dask worker, its --local-directory), or fewer images"
        )
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        array = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float32, shape=shape)
        for place, image in enumerate(chain([first], images)):
            array[place] = image
        array.flush()
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold a lock that the system releases when this process ends, however it ends."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
