"""Similarity between measured devices: a prior is not learned from a device that resembles no other one.

Such a device is one of a kind, or its measurements are wrong.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fleetnas.coordinator.predictors.learned_prior import MeasuredDevice, fit_device
from fleetnas.coordinator.predictors.prior import Floats, Prior, hierarchical_prior

#: Largest distance of two similar devices: the robust standard deviation of the logarithm of one device's latencies
#: over those that the other's weights predict, up to its speed. Of 22 public device settings the nearest one of another
#: device is within 0.12, of simulated ones within 0.16; random, inverted or far too steep latencies are beyond 0.3.
MAX_DISTANCE = 0.25
_SMALLEST = 0.05


def distances(devices: Sequence[MeasuredDevice], groups: Sequence[int] | NDArray[np.intp]) -> list[float]:
    """Distance of each device to the nearest one of another family, (n,), in the order of `devices`.

    The distance of two devices is the larger of their two prediction errors: invented latencies may be predicted well
    by accident. It is infinite for a device whose weights cannot be computed, and without another family.
    """
    base = hierarchical_prior(np.concatenate([device.features for device in devices]), groups, own=0.25)
    weights = [_weights(device, base) for device in devices]
    apart = np.array([[_apart(device, other) for other in weights] for device in devices])
    family = np.array([device.family for device in devices])
    apart[family[:, None] == family[None, :]] = np.inf
    return [float(distance) for distance in np.maximum(apart, apart.T).min(axis=1)]


def _weights(device: MeasuredDevice, base: Prior) -> Floats | None:
    try:
        found = fit_device(device, base).weights
    except np.linalg.LinAlgError:
        return None
    return found if np.isfinite(found).all() else None


def _apart(device: MeasuredDevice, weights: Floats | None) -> float:
    """Robust standard deviation of the logarithm of a device's latencies over those that `weights` predict."""
    if weights is None:
        return float("inf")
    predicted = device.features @ weights
    typical = float(np.median(predicted))
    if not typical > 0:
        return float("inf")
    errors = np.log(device.latency_ms) - np.log(np.maximum(predicted / typical, _SMALLEST))
    return 1.4826 * float(np.median(np.abs(errors - np.median(errors))))
