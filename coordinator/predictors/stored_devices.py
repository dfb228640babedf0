"""What the store's earlier runs measured, as a prior for the devices of a new run on the same design space."""

from __future__ import annotations

from typing import Any

import numpy as np

from coordinator.predictors.features import FeatureMap
from coordinator.predictors.learned_prior import MeasuredDevice, learn_prior
from coordinator.predictors.prior import Prior
from coordinator.store.store import MeasurementStore
from fleet_protocol.architecture import Architecture
from fleet_protocol.errors import ArchitectureError
from supernet_export.spaces.base import DesignSpace

#: A device setting is known once so many different subnets were measured on it; a prior takes so many known settings.
LEAST_SUBNETS, LEAST_SETTINGS = 10, 2
#: Of each setting only so many subnets are learned from, those measured last: more would teach little and take long.
_MOST_SUBNETS = 200


def stored_prior(store: MeasurementStore, space: DesignSpace, before_unix_s: float) -> Prior | None:
    """The prior learned from `stored_devices`; None where fewer than `LEAST_SETTINGS` settings are known.

    With a run's creation as `before_unix_s`, a resumed run has the prior that it began with: outcomes are only ever
    added to a store, each with the time at which it was stored.
    """
    known = stored_devices(store, space, before_unix_s)
    return learn_prior(known, FeatureMap(space).groups) if len(known) >= LEAST_SETTINGS else None


def stored_devices(store: MeasurementStore, space: DesignSpace, before_unix_s: float) -> list[MeasuredDevice]:
    """Every device setting with at least `LEAST_SUBNETS` subnets of `space` measured before then, by name.

    Runs of any supernet of the same design space and options count, whatever its resolutions, except subnets that
    `space` has not. What one agent measured on one setting is pooled, a subnet's runs by their median; throttled
    measurements are left out, and drift is taken out. An agent's settings are of one family.
    """
    found: dict[tuple[str, str], dict[Architecture, list[float]]] = {}
    for run in store.runs():
        if run.created_unix_s < before_unix_s and _same_space(run.settings, space):
            for row in store.latencies(run.run_id, before_unix_s):
                subnets = found.setdefault((row.device, row.setting_label), {})
                subnets.setdefault(row.architecture, []).append(row.latency_ms)
    features = FeatureMap(space)
    devices = []
    for (device, label), subnets in sorted(found.items()):
        kept = [architecture for architecture in subnets if _holds(space, architecture)][-_MOST_SUBNETS:]
        if len(kept) >= LEAST_SUBNETS:
            latency = np.array([float(np.median(subnets[architecture])) for architecture in kept])
            devices.append(MeasuredDevice(f"{device}/{label}", device, features.features(space.encode(kept)), latency))
    return devices


def _same_space(settings: dict[str, Any], space: DesignSpace) -> bool:
    return settings.get("design_space") == space.name and _fixed(settings.get("space_options", {})) == _fixed(
        dict(space.options)
    )


def _fixed(options: dict[str, Any]) -> dict[str, Any]:
    """Options that decide what a subnet costs: which resolutions are searched does not."""
    return {name: value for name, value in options.items() if name != "resolutions"}


def _holds(space: DesignSpace, architecture: Architecture) -> bool:
    try:
        space.encode([architecture])
    except ArchitectureError:
        return False
    return True
