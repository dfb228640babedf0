"""Which measured devices tell something of others: one that looks like no other teaches nothing, whether it is one of
a kind or lies."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from coordinator.predictors.learned_prior import MeasuredDevice, fit_device
from coordinator.predictors.prior import Floats, Prior, hierarchical_prior

#: What a device's latencies may differ by from those that another device's weights foretell of them, up to its speed:
#: the robust standard deviation of their logarithms. Between real devices of one design space the nearest other is
#: within 0.3 almost always; latencies that are made up are not foretold by anybody.
UNLIKE = 0.3
_SMALLEST = 0.05


def distances(devices: Sequence[MeasuredDevice], groups: Sequence[int] | NDArray[np.intp]) -> list[float]:
    """How far each device is from the nearest one of another family, in the order of `devices`.

    Infinite for a device whose weights cannot be computed, and where there is no other family.
    """
    base = hierarchical_prior(np.concatenate([device.features for device in devices]), groups, own=0.25)
    weights = [_weights(device, base) for device in devices]
    return [
        min(
            (
                _apart(device, other_weights)
                for other, other_weights in zip(devices, weights, strict=True)
                if other.family != device.family and other_weights is not None and own_weights is not None
            ),
            default=float("inf"),
        )
        for device, own_weights in zip(devices, weights, strict=True)
    ]


def _weights(device: MeasuredDevice, base: Prior) -> Floats | None:
    try:
        found = fit_device(device, base).weights
    except np.linalg.LinAlgError:
        return None
    return found if np.isfinite(found).all() else None


def _apart(device: MeasuredDevice, weights: Floats) -> float:
    """Robust standard deviation of the logarithm of a device's latencies over those that `weights` foretell."""
    foretold = device.features @ weights
    typical = float(np.median(foretold))
    if not typical > 0:
        return float("inf")
    errors = np.log(device.latency_ms) - np.log(np.maximum(foretold / typical, _SMALLEST))
    return 1.4826 * float(np.median(np.abs(errors - np.median(errors))))
