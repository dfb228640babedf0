"""Write what a training made: weights under OFA's names, and the bundle."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fleetnas.fleet_protocol.errors import CorruptBundleError
from fleetnas.supernet_export.bundle import write_bundle
from fleetnas.supernet_export.export import export_state_dict, file_sha256
from fleetnas.supernet_export.graph import Array
from fleetnas.supernet_export.manifest import Manifest, read_manifest
from fleetnas.supernet_export.output_files import write_atomically
from fleetnas.supernet_export.spaces.base import DesignSpace

WEIGHTS_NAME, BUNDLE_NAME = "weights.safetensors", "supernet.supernet"
#: Key of the manifest's draft in a weights file's metadata, from which `fleetnas export` makes the bundle's manifest.
DRAFT_KEY = "fleetnas"
_MAX_HEADER_BYTES = 4 << 20


def write_result(folder: Path, state: Mapping[str, Any], space: DesignSpace, manifest: Manifest) -> str:
    """Write `weights.safetensors` and `supernet.supernet` into `folder`; return the bundle's SHA-256.

    `state` is the network's state dict. The bundle's provenance is the weights file's name and hash.
    """
    from safetensors.numpy import save

    arrays: dict[str, Array] = {
        name: np.ascontiguousarray(tensor.detach().cpu().float().numpy()) for name, tensor in state.items()
    }
    weights = folder / WEIGHTS_NAME
    write_atomically(weights, save(arrays, metadata={DRAFT_KEY: manifest.text()}))
    provenance = manifest.provenance.model_copy(update={"sha256": file_sha256(weights)})
    return write_bundle(
        folder / BUNDLE_NAME, manifest.model_copy(update={"provenance": provenance}), export_state_dict(arrays, space)
    )


def read_draft(path: Path) -> Manifest | None:
    """Return the manifest's draft in a safetensors file that `write_result` wrote; None where there is none."""
    if path.suffix != ".safetensors":
        return None
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(length, _MAX_HEADER_BYTES)))
        return read_manifest(header["__metadata__"][DRAFT_KEY])
    except (OSError, ValueError, KeyError, TypeError, struct.error, CorruptBundleError):
        return None
