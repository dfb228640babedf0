"""Checkpoint files of supernets, read without running anything that they hold."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fleet_protocol.errors import CheckpointError
from supernet_export.graph import Array
from supernet_export.torch_file import read_state_dict


def read_checkpoint(path: Path) -> dict[str, Array]:
    """The state dict of a checkpoint, float32, under the names it uses.

    Safetensors files are read as they are. Everything else is PyTorch's format, which is a pickle: torch reads it
    with `weights_only=True`, or our own reader where torch is not installed; either refuses a file that holds more
    than tensors and runs nothing in it. A state dict may stand alone or, as OFA's do, under `state_dict`.
    `CheckpointError` says what is wrong.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint at {path}")
    state = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    if state and all(name.startswith("module.") for name in state):  # written by torch's DataParallel
        state = {name.removeprefix("module."): array for name, array in state.items()}
    return state


def _read_safetensors(path: Path) -> dict[str, Array]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return {name: np.asarray(array, np.float32) for name, array in load_file(path).items()}
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors: {_one_line(error)}") from None


def _read_torch(path: Path) -> dict[str, Array]:
    try:
        import torch
    except ImportError:
        return {name: np.asarray(array, np.float32) for name, array in read_state_dict(path).items()}
    _check_archive(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged or hostile pickle makes torch raise
        reason = _one_line(error)
        if reason.startswith("Weights only load failed"):
            raise CheckpointError(
                f"{path} holds something else than weights and is refused, because reading it would run code; "
                "save its state dict alone"
            ) from None
        raise CheckpointError(
            f"{path} cannot be read as a PyTorch checkpoint, it may be truncated or altered ({reason}); fetch it again"
        ) from None
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"{path} holds no state dict but a {type(content).__name__}")
    state: dict[str, Array] = {}
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise CheckpointError(f"{path} holds no state dict: {str(name)[:100]!r} is a {type(tensor).__name__}")
        state[name] = tensor.detach().float().numpy()
    return state


def _check_archive(path: Path) -> None:
    """Check the checksums of a file in PyTorch's zip layout, which torch itself does not look at."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except Exception as error:  # a damaged archive makes zipfile raise nearly anything
        damaged = _one_line(error)
    if damaged is not None:
        raise CheckpointError(f"{path} is damaged, a checksum in it is wrong ({damaged[:200]!r}); fetch it again")


def _one_line(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200]
