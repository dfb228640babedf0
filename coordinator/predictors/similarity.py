"""Similarity between measured devices: a prior is not learned from a device that resembles no other one.

Such a device is one of a kind, or its measurements are wrong.
"""

from __future__ import annotations

import numpy as np

from fleetnas.coordinator.predictors.device_fit import DeviceFits, MeasuredDevice
from fleetnas.coordinator.predictors.prior import Floats

#: Largest distance of two similar devices: the robust standard deviation of the logarithm of one device's latencies
#: over those that the other's weights predict, up to its speed. Of 22 public device settings the nearest one of another
#: device is within 0.12, of simulated ones within 0.16; random, inverted or far too steep latencies are beyond 0.3.
MAX_DISTANCE = 0.25
_SMALLEST = 0.05


def distances(fits: DeviceFits) -> list[float]:
    """Distance of each device to the nearest one of another family, (D,), in the order of `fits.devices`.

    The distance of two devices is the larger of their two prediction errors: invented latencies may be predicted well
    by accident. It is infinite for a device whose weights cannot be computed, and without another family.
    """
    apart = np.array([_apart(device, fits.weights) for device in fits.devices])
    family = np.unique(fits.families, return_inverse=True)[1]
    apart[family[:, None] == family[None, :]] = np.inf
    return [float(distance) for distance in np.maximum(apart, apart.T).min(axis=1)]


def _apart(device: MeasuredDevice, weights: Floats) -> Floats:
    """Robust standard deviation of the logarithm of a device's latencies over those that each `weights` predict, (D,).

    Infinite where the weights (D, F) are not finite or predict a typical latency that is not above 0.
    """
    with np.errstate(invalid="ignore"):
        predicted = weights @ device.features.T
        typical = np.median(predicted, axis=1)
        errors = np.log(device.latency_ms) - np.log(np.maximum(predicted / typical[:, None], _SMALLEST))
        found: Floats = 1.4826 * np.median(np.abs(errors - np.median(errors, axis=1)[:, None]), axis=1)
    return np.where((typical > 0) & np.isfinite(found), found, np.inf)
