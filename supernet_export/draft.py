"""Read the manifest that a training run leaves in the metadata of its weights file."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from fleetnas.fleet_protocol.errors import CheckpointError, CorruptBundleError
from fleetnas.supernet_export.manifest import Manifest, read_manifest

#: Key of the manifest in a safetensors file's metadata, the same as in a bundle's.
DRAFT_KEY = "fleetnas"
_LENGTH = struct.Struct("<Q")
_MAX_HEADER_BYTES = 4 * 1024 * 1024


def read_draft(path: Path) -> Manifest | None:
    """Return the manifest in a `.safetensors` file's metadata; None where there is none.

    `CheckpointError` where there is one that cannot be read.
    """
    if path.suffix != ".safetensors":
        return None
    text = _metadata(path).get(DRAFT_KEY)
    if text is None:
        return None
    try:
        return read_manifest(str(text))
    except CorruptBundleError as error:
        raise CheckpointError(f"{path}: the manifest in its metadata cannot be used: {error}") from None


def _metadata(path: Path) -> dict[str, Any]:
    """Return the metadata; empty where the file is none: reading its tensors will tell what is wrong with it."""
    try:
        with path.open("rb") as file:
            start = file.read(_LENGTH.size)
            if len(start) < _LENGTH.size:
                return {}
            (length,) = _LENGTH.unpack(start)
            if length > _MAX_HEADER_BYTES:
                return {}
            header = json.loads(file.read(length))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}; check the path") from None
    except (ValueError, RecursionError):
        return {}
    found = header.get("__metadata__") if isinstance(header, dict) else None
    return found if isinstance(found, dict) else {}
