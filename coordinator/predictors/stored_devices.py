"""What the store's earlier runs measured, as a prior for the devices of a new run on the same design space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from coordinator.predictors.features import FeatureMap
from coordinator.predictors.learned_prior import MeasuredDevice
from coordinator.predictors.prior import Prior
from coordinator.predictors.transfer import HardwareTransfer, Parameters, profile_parameters
from coordinator.store.store import MeasurementStore
from device_profiles.profile import DeviceProfile
from fleet_protocol.architecture import Architecture
from fleet_protocol.errors import ArchitectureError
from fleet_protocol.messages import RuntimeSetting
from supernet_export.spaces.base import DesignSpace

#: A device setting is known once so many different subnets were measured on it; a prior takes so many known settings.
LEAST_SUBNETS, LEAST_SETTINGS = 10, 2
#: Of each setting only so many subnets are learned from, those measured last: more would teach little and take long.
_MOST_SUBNETS = 200
#: Hardware parameters, logarithms, are rounded to this, so that boards of one model share one prior and its spread.
_ROUNDED_TO = 0.1


class StoredPriors:
    """Priors for the device settings of a run, learned from what earlier runs measured.

    With a run's creation as `before_unix_s`, a resumed run has the priors that it began with: outcomes are only ever
    added to a store, each with the time at which it was stored.
    """

    def __init__(self, store: MeasurementStore, space: DesignSpace, before_unix_s: float) -> None:
        known = stored_devices(store, space, before_unix_s)
        self._transfer: HardwareTransfer | None = None
        self._priors: dict[tuple[float | str | None, ...], Prior] = {}
        if len(known) >= LEAST_SETTINGS:
            self._transfer = HardwareTransfer(
                [device.measured for device in known],
                FeatureMap(space).groups,
                {device.measured.name: device.parameters for device in known},
            )

    def prior(self, profile: DeviceProfile, setting: RuntimeSetting) -> Prior | None:
        """What is expected of a device setting by its hardware; None where fewer than `LEAST_SETTINGS` are known.

        Settings of nearly equal hardware get the same object.
        """
        if self._transfer is None:
            return None
        parameters = {
            name: _ROUNDED_TO * round(value / _ROUNDED_TO) if isinstance(value, float) else value
            for name, value in profile_parameters(profile, setting).items()
        }
        key = tuple(parameters.values())
        if key not in self._priors:
            self._priors[key] = self._transfer.prior(parameters)
        return self._priors[key]


@dataclass(frozen=True)
class StoredDevice:
    """A device setting of earlier runs."""

    measured: MeasuredDevice
    parameters: Parameters


def stored_devices(store: MeasurementStore, space: DesignSpace, before_unix_s: float) -> list[StoredDevice]:
    """Every device setting with at least `LEAST_SUBNETS` subnets of `space` measured before then, by name.

    Runs of any supernet of the same design space and options count, whatever its resolutions, except subnets that
    `space` has not. What one agent measured on one setting is pooled, a subnet's runs by their median, at
    undisturbed speed. An agent's settings are of one family.
    """
    found: dict[tuple[str, str], dict[Architecture, list[float]]] = {}
    parameters: dict[tuple[str, str], Parameters] = {}
    for run in store.runs():
        if run.created_unix_s < before_unix_s and _same_space(run.settings, space):
            for record in store.devices(run.run_id):
                hardware = profile_parameters(record.info.profile, record.setting)
                parameters[record.device, record.setting.label] = hardware
            for row in store.latencies(run.run_id, before_unix_s):
                subnets = found.setdefault((row.device, row.setting_label), {})
                subnets.setdefault(row.architecture, []).append(row.latency_ms)
    features = FeatureMap(space)
    devices = []
    for (device, label), subnets in sorted(found.items()):
        kept = [architecture for architecture in subnets if _holds(space, architecture)][-_MOST_SUBNETS:]
        if len(kept) >= LEAST_SUBNETS:
            latency = np.array([float(np.median(subnets[architecture])) for architecture in kept])
            x = features.features(space.encode(kept))
            measured = MeasuredDevice(f"{device}/{label}", device, x, latency)
            devices.append(StoredDevice(measured, parameters[device, label]))
    return devices


def _same_space(settings: dict[str, Any], space: DesignSpace) -> bool:
    return settings.get("design_space") == space.name and _fixed(settings.get("space_options", {})) == _fixed(
        dict(space.options)
    )


def _fixed(options: object) -> dict[str, Any] | None:
    """Options that decide what a subnet costs: which resolutions are searched does not. None where they are none."""
    if not isinstance(options, dict):
        return None
    return {name: value for name, value in options.items() if name != "resolutions"}


def _holds(space: DesignSpace, architecture: Architecture) -> bool:
    try:
        space.encode([architecture])
    except ArchitectureError:
        return False
    return True
