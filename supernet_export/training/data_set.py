"""Check the folders of images for training and validation before the first epoch, and list their images."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fleetnas.fleet_protocol.cores import core_count
from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.supernet_export.evaluation.class_folders import MOST_NAMED, class_names_in, images_below
from fleetnas.supernet_export.evaluation.image_file import fault

_CHECK_THREADS = 8
#: Fewer images of a class cannot be told from noise.
LEAST_IN_CLASS = 2


@dataclass(frozen=True)
class LabelledImages:
    """Image files of a folder with their classes, in the order of classes and names."""

    directory: Path
    paths: tuple[Path, ...]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        """Return an image's name below the folder."""
        return str(self.paths[index].relative_to(self.directory))


@dataclass(frozen=True)
class DataSets:
    """Images to train on and to validate with, and the names of their classes."""

    train: LabelledImages
    val: LabelledImages
    class_names: tuple[str, ...]

    def fingerprint(self) -> str:
        """Return a digest of all file names and sizes, by which a resumed training recognises its images."""
        digest = hashlib.sha256()
        for part in (self.train, self.val):
            for index, path in enumerate(part.paths):
                digest.update(f"{part.name(index)}\0{path.stat().st_size}\0".encode(errors="surrogateescape"))
        return digest.hexdigest()


def open_data_sets(
    train: Path,
    val: Path,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
    warn: Callable[[str], None] = lambda text: None,
) -> DataSets:
    """List the images in `train/<class>/` and `val/<class>/`, and decode each once.

    `progress` is given the images read and the images in all; `warn` is given a line where images are in both folders.

    Raises:
        UsageError: a folder is missing, a class has too few images or none to validate with, the folders are the same,
            or files cannot be read; the message names all of it.
    """
    names, val_names = class_names_in(train), class_names_in(val)
    in_train = {name: images_below(path) for name, path in _folders(train, names).items()}
    in_val = {name: images_below(path) for name, path in _folders(val, val_names).items()}
    faults = [*_faults_of_folders(train, val), *_faults_of_classes(train, val, in_train, in_val)]
    if not faults:
        paths = [path for found in (in_train, in_val) for listed in found.values() for path in listed]
        faults += _unreadable(paths, progress)
    if faults:
        raise UsageError(
            f"these images cannot be trained on: {'; '.join(faults)}; correct the folders and run it again"
        )
    sets = DataSets(_labelled(train, names, in_train), _labelled(val, names, in_val), names)
    both = _in_both(sets)
    if both:
        named = ", ".join(f"{a} = {b}" for a, b in both[:MOST_NAMED])
        warn(
            f"{len(both):,} of {len(sets.val):,} images in {val} are also in {train}, byte for byte ({named}"
            f"{', ...' if len(both) > MOST_NAMED else ''}): accuracy on them says little; remove them from one folder"
        )
    return sets


def _folders(directory: Path, names: Sequence[str]) -> dict[str, Path]:
    import unicodedata

    found = {unicodedata.normalize("NFC", entry.name): entry for entry in directory.iterdir() if entry.is_dir()}
    return {name: found[name] for name in names}


def _labelled(directory: Path, names: Sequence[str], found: dict[str, list[Path]]) -> LabelledImages:
    paths = tuple(path for name in names for path in found[name])
    labels = np.repeat(np.arange(len(names)), [len(found[name]) for name in names])
    return LabelledImages(directory, paths, labels.astype(np.int64))


def _faults_of_folders(train: Path, val: Path) -> list[str]:
    first, second = train.resolve(), val.resolve()
    if first == second:
        return [f"{val} is the folder of training images itself: give another one to --val"]
    if first in second.parents or second in first.parents:
        return [f"{train} and {val} lie in each other: give two separate folders"]
    return []


def _faults_of_classes(
    train: Path, val: Path, in_train: dict[str, list[Path]], in_val: dict[str, list[Path]]
) -> list[str]:
    faults = []
    if not in_train:
        faults.append(f"{train} holds no folders: it needs one folder of images per class")
    elif len(in_train) == 1:
        faults.append(f"{train} holds one class only ({_listed(list(in_train))}), and a classifier needs at least 2")
    empty = [name for name, found in in_train.items() if not found]
    few = [name for name, found in in_train.items() if 0 < len(found) < LEAST_IN_CLASS]
    missing = [name for name in in_train if name not in in_val]
    without = [name for name, found in in_val.items() if not found and name in in_train]
    strange = [name for name in in_val if name not in in_train]
    if empty:
        faults.append(f"no images in {train} of {_listed(empty)}")
    if few:
        faults.append(f"one image only in {train} of {_listed(few)}, and a class needs at least {LEAST_IN_CLASS}")
    if missing:
        faults.append(f"no folder in {val} for {_listed(missing)}")
    if without:
        faults.append(f"no images in {val} of {_listed(without)}")
    if strange:
        faults.append(
            f"{_listed(strange)} in {val} {'is no class' if len(strange) == 1 else 'are no classes'} of {train}"
        )
    return faults


def _unreadable(paths: Sequence[Path], progress: Callable[[int, int], None]) -> list[str]:
    faulty: list[str] = []
    with ThreadPoolExecutor(min(_CHECK_THREADS, core_count())) as readers:
        for done, (path, found) in enumerate(zip(paths, readers.map(fault, paths), strict=True), 1):
            if found:
                faulty.append(f"{path} ({found})")
            progress(done, len(paths))
    if not faulty:
        return []
    more = f" and {len(faulty) - MOST_NAMED:,} more" if len(faulty) > MOST_NAMED else ""
    return [f"{len(faulty):,} of {len(paths):,} images cannot be read: {', '.join(faulty[:MOST_NAMED])}{more}"]


def _in_both(sets: DataSets) -> list[tuple[str, str]]:
    """Return pairs of names, of validation and training images with the same bytes."""
    by_size: dict[int, list[int]] = defaultdict(list)
    for index, path in enumerate(sets.train.paths):
        by_size[path.stat().st_size].append(index)
    digests: dict[int, dict[bytes, int]] = {}
    found = []
    for index, path in enumerate(sets.val.paths):
        size = path.stat().st_size
        if size in by_size:
            if size not in digests:
                digests[size] = {_digest(sets.train.paths[i]): i for i in by_size[size]}
            twin = digests[size].get(_digest(path))
            if twin is not None:
                found.append((sets.val.name(index), sets.train.name(twin)))
    return found


def _digest(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMED:,} more" if len(names) > MOST_NAMED else ""
    return ", ".join(repr(name) for name in names[:MOST_NAMED]) + more
