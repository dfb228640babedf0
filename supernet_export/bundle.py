"""Read and write supernet bundles: one `.supernet` file from which every machine builds subnets by itself.

A bundle is a safetensors file. Its metadata hold a JSON manifest and a digest of the content, so that a bundle that was
altered later is recognised even without its SHA-256. The file's SHA-256 is the bundle's identity.
Nothing in a bundle is executed, and opening it maps the weights instead of copying them.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
import struct
import tempfile
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fleetnas.fleet_protocol.errors import CheckpointError, CorruptBundleError, FleetnasError, HashMismatchError
from fleetnas.supernet_export.accuracy.model import AccuracyPredictor
from fleetnas.supernet_export.graph import Array
from fleetnas.supernet_export.manifest import Manifest, read_manifest
from fleetnas.supernet_export.model_metadata import ModelMetadata
from fleetnas.supernet_export.output_files import permissions_of
from fleetnas.supernet_export.slicing.families import slicer_for
from fleetnas.supernet_export.spaces.base import DesignSpace
from fleetnas.supernet_export.spaces.registry import make_space

#: Tensors of the accuracy predictor start with this; all others are the supernet's.
ACCURACY_PREFIX = "accuracy/"

_MANIFEST_KEY, _DIGEST_KEY = "fleetnas", "content_sha256"
_MAX_HEADER_BYTES = 4 * 1024 * 1024
_LENGTH = struct.Struct("<Q")


def write_bundle(path: Path, manifest: Manifest, tensors: Mapping[str, Array]) -> str:
    """Write a bundle atomically, the same bytes for the same content; return its SHA-256.

    `CorruptBundleError` where `tensors` are not those of the manifest's design space, or where the manifest is one that
    `SupernetBundle.open` would refuse.
    """
    text = manifest.text()
    manifest = read_manifest(text)  # a copy with other fields was never validated
    _check_tensors(space_of(manifest), manifest, {name: array.shape for name, array in tensors.items()})
    entries: dict[str, Any] = {}
    offset = 0
    for name in sorted(tensors):
        end = offset + 4 * tensors[name].size
        entries[name] = {"dtype": "F32", "shape": list(tensors[name].shape), "data_offsets": [offset, end]}
        offset = end
    digest = _content_digest(text, entries)
    blocks: list[Any] = [np.ascontiguousarray(tensors[name], "<f4") for name in sorted(tensors)]
    for block in blocks:
        digest.update(block)
    metadata = {_MANIFEST_KEY: text, _DIGEST_KEY: digest.hexdigest()}
    header = json.dumps({"__metadata__": metadata, **entries}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    if len(header) > _MAX_HEADER_BYTES:
        raise CorruptBundleError(
            f"the header of {path} would have {len(header):,} bytes, more than the {_MAX_HEADER_BYTES:,} that a bundle "
            "may have; give shorter class names"
        )
    identity = hashlib.sha256()
    path = Path(path)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            for part in (_LENGTH.pack(len(header)), header, *blocks):
                file.write(part)
                identity.update(part)
            file.flush()
            os.fsync(file.fileno())
            os.chmod(file.name, permissions_of(path))
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise
    return identity.hexdigest()


class SupernetBundle:
    """An open bundle. Its tensors are read-only views on the mapped file."""

    def __init__(self, path: Path, mapped: mmap.mmap, manifest: Manifest, tensors: dict[str, Array]) -> None:
        self.path = path
        self.manifest = manifest
        self._mapped = mapped
        self._tensors = tensors

    @classmethod
    def open(cls, path: Path | str, *, expected_sha256: str | None = None) -> SupernetBundle:
        """Map the bundle at `path`.

        With `expected_sha256` the whole file must have that hash (`HashMismatchError`); without it, the content
        must have the digest that the bundle carries. `CorruptBundleError` for every other defect.
        """
        path = Path(path)
        mapped = _map(path)
        if expected_sha256 is not None:
            found = hashlib.sha256(mapped).hexdigest()
            if found != expected_sha256:
                raise HashMismatchError(
                    f"{path} was announced with SHA-256 {expected_sha256} and has {found}; delete it and fetch it again"
                )
        try:
            metadata, entries, start = _read_header(mapped)
            if expected_sha256 is None:
                digest = _content_digest(metadata[_MANIFEST_KEY], entries)
                with memoryview(mapped) as whole, whole[start:] as data:
                    digest.update(data)
                if digest.hexdigest() != metadata[_DIGEST_KEY]:
                    raise CorruptBundleError("its content does not have the digest that it carries")
            manifest = read_manifest(metadata[_MANIFEST_KEY])
            tensors = {name: _view(mapped, name, entry, start) for name, entry in entries.items()}
            bundle = cls(path, mapped, manifest, tensors)
            _check_tensors(bundle.space, manifest, {name: array.shape for name, array in tensors.items()})
        except CorruptBundleError as error:
            raise CorruptBundleError(
                f"{path} is not a usable supernet bundle: {error}; export or fetch it again"
            ) from None
        return bundle

    @cached_property
    def space(self) -> DesignSpace:
        """The design space that the supernet spans."""
        return space_of(self.manifest)

    @cached_property
    def model_metadata(self) -> ModelMetadata | None:
        """What model files of its subnets say about themselves; None for a bundle of format version 1."""
        return self.manifest.model_metadata()

    @cached_property
    def sha256(self) -> str:
        """The bundle's identity."""
        return hashlib.sha256(self._mapped).hexdigest()

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return len(self._mapped)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tensors, sorted."""
        return tuple(sorted(self._tensors))

    def tensor(self, name: str) -> Array:
        """Return a read-only float32 view on the mapped file."""
        return self._tensors[name]

    def accuracy_predictor(self) -> AccuracyPredictor | None:
        """Return the accuracy predictor in the bundle; None if it has none."""
        info = self.manifest.accuracy_predictor
        if info is None:
            return None
        tensors = {
            name.removeprefix(ACCURACY_PREFIX): array
            for name, array in self._tensors.items()
            if name.startswith(ACCURACY_PREFIX)
        }
        try:
            predictor = AccuracyPredictor.from_tensors(tensors, info.held_out)
        except CheckpointError as error:
            raise CorruptBundleError(f"the accuracy predictor in {self.path} cannot be used: {error}") from None
        width = self.space.one_hot(self.space.smallest()).shape[1]
        if predictor.features != width:
            raise CorruptBundleError(
                f"the accuracy predictor in {self.path} takes {predictor.features} features and {self.space.name} has "
                f"{width}; export the bundle with the predictor of its own space"
            )
        predictor.fitted_on = self.space.name, dict(self.space.options)
        return predictor


def _map(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # ValueError: the file is empty
        reason = getattr(error, "strerror", None) or "it is empty"
        raise CorruptBundleError(
            f"{path} cannot be read as a supernet bundle: {reason}; check the path, or make one with `fleetnas export`"
        ) from None


def _read_header(mapped: mmap.mmap) -> tuple[dict[str, str], dict[str, Any], int]:
    """Return metadata, tensor entries in order of their data, and the data's offset; stricter than safetensors."""
    if len(mapped) < _LENGTH.size:
        raise CorruptBundleError("it is too short")
    (length,) = _LENGTH.unpack_from(mapped)
    start = _LENGTH.size + length
    if not 2 <= length <= _MAX_HEADER_BYTES or start > len(mapped):
        raise CorruptBundleError(f"it is a file of another kind, or its header claims too much ({length} bytes)")
    try:
        header = json.loads(mapped[_LENGTH.size : start])
    except (ValueError, RecursionError):
        raise CorruptBundleError("its header is not JSON") from None
    metadata = header.pop("__metadata__", None) if isinstance(header, dict) else None
    if not isinstance(metadata, dict) or not all(
        isinstance(metadata.get(key), str) for key in (_MANIFEST_KEY, _DIGEST_KEY)
    ):
        raise CorruptBundleError("it holds no manifest")
    offset = 0
    for name, entry in header.items():
        offset = _check_entry(name, entry, offset)
    if start + offset != len(mapped):
        raise CorruptBundleError(f"its header describes {start + offset:,} bytes and the file has {len(mapped):,}")
    return metadata, header, start


def _check_entry(name: str, entry: Any, offset: int) -> int:
    """Return the end of the tensor at `offset`; tensors follow each other without gap or overlap."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"} or entry["dtype"] != "F32":
        raise CorruptBundleError(f"tensor {name[:100]!r} is not described as float32")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not all(isinstance(part, list) and all(type(item) is int for item in part) for part in (shape, offsets)):
        raise CorruptBundleError(f"tensor {name[:100]!r} has no shape or place")
    if len(shape) > 8 or any(not 1 <= side < 2**31 for side in shape):
        raise CorruptBundleError(f"tensor {name[:100]!r} has an impossible shape")
    end: int = offset + 4 * math.prod(shape)
    if offsets != [offset, end]:
        raise CorruptBundleError(f"tensor {name[:100]!r} is not where its shape and its neighbours place it")
    return end


def space_of(manifest: Manifest) -> DesignSpace:
    """Make the design space that a manifest names; `CorruptBundleError` if there is none of these options."""
    try:
        return make_space(manifest.space, manifest.options)
    except (FleetnasError, ValueError, TypeError, ArithmeticError, LookupError) as error:
        message = " ".join(str(error).split())[:300]
        raise CorruptBundleError(f"its design space cannot be made: {message}") from None


def _view(mapped: mmap.mmap, name: str, entry: Any, start: int) -> Array:
    shape = entry["shape"]
    flat: Array = np.frombuffer(mapped, "<f4", math.prod(shape), start + entry["data_offsets"][0])
    return flat.reshape(shape)


def _check_tensors(space: DesignSpace, manifest: Manifest, shapes: Mapping[str, tuple[int, ...]]) -> None:
    wanted = slicer_for(space).bundle_shapes()
    for name, shape in wanted.items():
        if name not in shapes:
            raise CorruptBundleError(f"{space.name} needs a tensor {name!r} that it does not hold")
        if shapes[name] != shape:
            raise CorruptBundleError(f"tensor {name!r} must have shape {shape} for {space.name} and has {shapes[name]}")
    classes, channels = space.classes, space.image_channels
    if (manifest.classes, manifest.preprocessing.channels) != (classes, channels):
        raise CorruptBundleError(
            f"its manifest speaks of {manifest.classes:,} classes and images of {manifest.preprocessing.channels} "
            f"channels, and its weights are for {classes:,} and {channels}"
        )
    extra = [name for name in shapes if name not in wanted and not name.startswith(ACCURACY_PREFIX)]
    if extra:
        raise CorruptBundleError(f"{space.name} knows no tensor {min(extra)[:100]!r}")


def _content_digest(manifest: str, entries: Mapping[str, Any]) -> Any:
    """Return a hash of everything but the digest itself and the data, which the caller adds."""
    described = json.dumps([manifest, list(entries.items())], separators=(",", ":"))
    return hashlib.sha256(described.encode())
