"""Read checkpoint files of supernets without executing their content."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fleetnas.fleet_protocol.errors import CheckpointError
from fleetnas.supernet_export.checkpoints.layout import find_state_dict
from fleetnas.supernet_export.checkpoints.plain_data import PLAIN_DATA, PlainArray
from fleetnas.supernet_export.checkpoints.torch_file import REMEDY, StoredTensor, from_bfloat16, read_torch_file
from fleetnas.supernet_export.checkpoints.weights_choice import WeightsChoice
from fleetnas.supernet_export.graph import Array


@dataclass(frozen=True)
class Checkpoint:
    """A network's tensors, float32, under the network's own names."""

    tensors: dict[str, Array]
    where: str
    """How many there are, and where in the file they were, for people."""


def read_checkpoint(path: Path, *, use_torch: bool = True, weights: WeightsChoice | None = None) -> Checkpoint:
    """Read the state dict in a checkpoint file.

    Safetensors files are read as they are. Everything else is PyTorch's format, which is a pickle: torch reads it
    with `weights_only=True`, or our own reader without `use_torch`, where torch is not installed, or where it does not
    know the layout. Either refuses a file that holds more than tensors and plain data, and runs nothing in it. A state
    dict may stand alone or under the names that trainers use, its own names with the prefixes of wrappers.
    `weights` chooses between plain and averaged ones where there are both; None takes the plain ones.
    Raises `CheckpointError` if there is none, with the reason.
    """
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; give the name of a checkpoint or bundle in it")
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint at {path}; check the path")
    if path.suffix == ".safetensors":
        content, is_tensor, read = _open_safetensors(path)
    else:
        content, is_tensor, read = _open_torch(path) if use_torch else _open_without_torch(path)
    if isinstance(content, dict) and content.keys() >= _STATE_OF_TRAINING:
        raise CheckpointError(
            f"{path} is the state of a training, for `fleetnas train --resume`; take weights.safetensors or "
            "supernet.supernet in the same folder, which are written at its end"
        )
    try:
        found = find_state_dict(content, is_tensor, weights)
        return Checkpoint({name: _float32(name, read(value)) for name, value in found.tensors.items()}, found.where)
    except CheckpointError as error:
        raise CheckpointError(str(error) if str(path) in str(error) else f"{path} {error}") from None


#: Keys of checkpoints that `fleetnas train` resumes from.
_STATE_OF_TRAINING = {"version", "trainer", "manifest", "images"}
#: Kinds of numbers in safetensors files, as numpy calls them.
_SAFETENSORS = {
    **{f"F{8 * size}": f"<f{size}" for size in (2, 4, 8)},
    **{f"{kind.upper()}{8 * size}": f"<{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)},
    "BOOL": "?",
    "BF16": "<u2",
}
#: What was saved, which of it are tensors, and how to read one.
_Opened = tuple[Any, Callable[[Any], bool], Callable[[Any], Any]]


def _open_safetensors(path: Path) -> _Opened:
    from safetensors import SafetensorError, deserialize

    def read(entry: Any) -> Array:
        kind = entry["dtype"]
        if kind not in _SAFETENSORS:
            raise CheckpointError(f"holds a tensor of kind {kind}; save the weights as float32")
        flat = np.frombuffer(entry["data"], _SAFETENSORS[kind])
        return (from_bfloat16(flat) if kind == "BF16" else flat).reshape(entry["shape"])

    try:
        entries = dict(deserialize(path.read_bytes()))  # type: ignore[no-untyped-call]
        return entries, lambda value: isinstance(value, dict), read
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors: {_one_line(error)}") from None


def _open_torch(path: Path) -> _Opened:
    try:
        import torch
    except ImportError:
        return _open_without_torch(path)
    _check_archive(path)
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(list(PLAIN_DATA.values())):
            warnings.simplefilter("ignore")
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # noqa: BLE001 - damaged, hostile or newer files make torch raise anything, as old torch does
        return _open_without_torch(path)

    def read(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value.array
        try:
            return (value if value.is_complex() else value.float()).detach().numpy()
        except (RuntimeError, TypeError) as error:  # quantized, sparse or without numbers
            raise CheckpointError(f"holds a tensor of another kind ({_one_line(error)}). {REMEDY}") from None

    return content, lambda value: isinstance(value, torch.Tensor) or _is_array(value), read


def _open_without_torch(path: Path) -> _Opened:
    content, read_tensor = read_torch_file(path)

    def read(value: Any) -> Any:
        return read_tensor(value) if isinstance(value, StoredTensor) else value.array

    return content, lambda value: isinstance(value, StoredTensor) or _is_array(value), read


def _is_array(value: Any) -> bool:
    return isinstance(value, PlainArray) and value.array is not None


def _float32(name: str, array: Any) -> Array:
    if array.dtype.kind not in "biuf":
        raise CheckpointError(f"holds {name[:100]!r} as {array.dtype}, and weights are real numbers. {REMEDY}")
    return np.asarray(array, np.float32)


def _check_archive(path: Path) -> None:
    """Check the checksums of a file in PyTorch's zip layout, which torch itself does not check."""
    try:
        if not zipfile.is_zipfile(path):  # which raises too, for some damages of the last record
            return
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except Exception as error:  # noqa: BLE001 - a damaged archive makes zipfile raise nearly anything
        damaged = _one_line(error)
    if damaged is not None:
        raise CheckpointError(f"{path} is damaged, a checksum in it is wrong ({damaged[:200]!r}); fetch it again")


def _one_line(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200]
