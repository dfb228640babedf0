"""Encode the calibration of a subnet for the wire: batch-norm statistics, and for int8 the ranges of activations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fleetnas.fleet_protocol.errors import CorruptBundleError
from fleetnas.supernet_export.graph import Statistics
from fleetnas.supernet_export.quantisation import Ranges

_STATISTICS, _RANGES = "statistics:", "range:"


@dataclass(frozen=True, slots=True)
class Calibration:
    """Estimates from images for one subnet; None if nothing was estimated."""

    statistics: Statistics | None = None
    ranges: Ranges | None = None


def save_calibration(calibration: Calibration) -> bytes:
    """Encode as safetensors: per convolution a (2, channels) tensor of mean and variance, per activation its two ends.

    Equal calibrations give equal bytes.
    """
    from safetensors.numpy import save

    tensors = {f"{_STATISTICS}{name}": np.stack(pair) for name, pair in (calibration.statistics or {}).items()}
    tensors |= {f"{_RANGES}{name}": np.array(pair, np.float32) for name, pair in (calibration.ranges or {}).items()}
    blob: bytes = save(dict(sorted(tensors.items())))
    return blob


def load_calibration(blob: bytes) -> Calibration:
    """Read a blob of `save_calibration`; `CorruptBundleError` if it is none."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        tensors: Mapping[str, Any] = load(blob)
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptBundleError(f"the blob holds no calibration ({error}); calibrate the subnet again") from None
    statistics, ranges = {}, {}
    for key, tensor in tensors.items():
        sound = tensor.dtype == np.float32 and bool(np.isfinite(tensor).all())
        if sound and key.startswith(_STATISTICS) and tensor.ndim == 2 and len(tensor) == 2 and (tensor[1] >= 0).all():
            statistics[key.removeprefix(_STATISTICS)] = (tensor[0], tensor[1])
        elif sound and key.startswith(_RANGES) and tensor.shape == (2,) and tensor[0] <= tensor[1]:
            ranges[key.removeprefix(_RANGES)] = (float(tensor[0]), float(tensor[1]))
        else:
            raise CorruptBundleError(f"{key[:100]!r} is no part of a calibration; calibrate the subnet again")
    return Calibration(statistics or None, ranges or None)
