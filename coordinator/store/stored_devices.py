"""Priors for the devices of a new run, learned from earlier runs in the store on the same design space."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from fleetnas.coordinator.predictors.bayesian import BayesianPredictor
from fleetnas.coordinator.predictors.device_fit import DeviceFits, MeasuredDevice, fit_devices
from fleetnas.coordinator.predictors.features import FeatureMap
from fleetnas.coordinator.predictors.hardware_transfer import HardwareTransfer, Parameters, profile_parameters
from fleetnas.coordinator.predictors.prior import Floats, Prior
from fleetnas.coordinator.predictors.similarity import MAX_DISTANCE, distances
from fleetnas.coordinator.store.store import MeasurementStore
from fleetnas.device_profiles.profile import DeviceProfile
from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.fleet_protocol.errors import ArchitectureError, UsageError
from fleetnas.fleet_protocol.messages import RuntimeSetting
from fleetnas.supernet_export.spaces.base import DesignSpace

#: Different subnets that must have been measured on a device setting, and settings that a prior needs, at least.
LEAST_SUBNETS, LEAST_SETTINGS = 10, 2
#: Most subnets that are learned from of each setting, those measured last: more would improve little and take long.
_MOST_SUBNETS = 200
#: Hardware parameters, logarithms, are rounded to this, so that boards of one model share prior and initial design.
_ROUNDED_TO = 0.1
#: Subnets of the space on which a prior is tried before a device begins with it.
_EXAMPLES = 24
#: Subnets of the space whose mean features are the typical subnet's.
_REFERENCES = 1000

Made = TypeVar("Made")


class StoredPriors:
    """Priors for the device settings of a run, learned from the measurements of earlier runs.

    With a run's creation as `before_unix_s`, a resumed run has the priors that it began with: outcomes are only added
    to a store, each with the time at which it was stored.

    A setting that is unlike those of all other agents is learned from for its own agent alone.
    """

    def __init__(
        self,
        store: MeasurementStore,
        space: DesignSpace,
        before_unix_s: float,
        *,
        without: Collection[str] = (),
        note: Callable[[str], object] = lambda _: None,
    ) -> None:
        """`without` names agents that no prior is learned from; `note` takes a line about left-out settings."""
        known = [
            device
            for device in stored_devices(store, space, before_unix_s, without=without)
            if device.measured.family not in without
        ]
        self._features, self._note = FeatureMap(space), note
        self._examples = self._features.features(space.sample(_EXAMPLES, np.random.default_rng(0)))
        measured = [device.measured for device in known]
        # Typical subnets of the space, not those measured: another device changes nothing in the fit of this one.
        reference = self._features.features(space.sample(_REFERENCES, np.random.default_rng(1)))
        self._parameters = {device.measured.name: device.parameters for device in known}
        self._fits = fit_devices(measured, self._features.groups, reference) if len(known) >= LEAST_SETTINGS else None
        self._unlike = _unlike_others(self._fits) if self._fits is not None else {}
        self._transfers: dict[str, HardwareTransfer | None] = {}
        self._priors: dict[tuple[float | str | None, ...], Prior | None] = {}
        if self._unlike:
            note(
                f"{', '.join(sorted(self._unlike))}: measured in earlier runs like no other device; only their own "
                "agents begin with what was measured there (see `fleetnas devices --distrust`)"
            )

    def prior(self, profile: DeviceProfile, setting: RuntimeSetting, agent: str = "") -> Prior | None:
        """Return the prior of an agent's setting by its hardware; None where fewer than `LEAST_SETTINGS` are known.

        None also where it cannot be computed. Settings of nearly equal hardware get the same object.
        """
        own = agent if agent in self._unlike.values() else ""
        if own not in self._transfers:
            self._transfers[own] = self._transfer(own)
        transfer = self._transfers[own]
        if transfer is None:
            return None
        parameters = {
            name: _ROUNDED_TO * round(value / _ROUNDED_TO) if isinstance(value, float) else value
            for name, value in profile_parameters(profile, setting).items()
        }
        key = (own, *parameters.values())
        if key not in self._priors:
            self._priors[key] = self._computed(lambda: self._tried(transfer.prior(parameters)))
        return self._priors[key]

    def _transfer(self, own: str) -> HardwareTransfer | None:
        """Learn from the settings that are like others, and from those of the agent `own`."""
        fits = self._fits
        if fits is None:
            return None
        taken = [
            place
            for place, device in enumerate(fits.devices)
            if device.name not in self._unlike or device.family == own
        ]
        if len(taken) < LEAST_SETTINGS:
            return None
        return self._computed(lambda: HardwareTransfer(fits.subset(taken), self._parameters))

    def _tried(self, prior: Prior) -> Prior:
        """Return a prior that can learn from invented measurements; `LinAlgError` otherwise."""
        predictor = BayesianPredictor(prior)
        latency_ms = np.maximum(self._examples @ prior.hypotheses[0].mean, 0.05)
        predictor.update(self._examples, latency_ms, 0.01 * latency_ms)
        if not all(np.isfinite(found).all() for found in predictor.predict(self._examples)):
            raise np.linalg.LinAlgError("its predictions are not finite")
        return prior

    def _computed(self, compute: Callable[[], Made]) -> Made | None:
        try:
            return compute()
        except (np.linalg.LinAlgError, UsageError) as error:
            self._note(
                f"no prior can be learned from what earlier runs measured ({error}); the search begins with the "
                "default one (see `fleetnas devices --distrust`)"
            )
            return None


def _unlike_others(fits: DeviceFits) -> dict[str, str]:
    """Return the settings unlike those of all other agents, with their agents; none where there is one agent alone."""
    if len(set(fits.families)) < 2:
        return {}
    found = zip(fits.devices, distances(fits), strict=True)
    return {device.name: device.family for device, distance in found if not distance <= MAX_DISTANCE}


@dataclass(frozen=True)
class StoredDevice:
    """A device setting of earlier runs."""

    measured: MeasuredDevice
    parameters: Parameters


def stored_devices(
    store: MeasurementStore, space: DesignSpace, before_unix_s: float, *, without: Collection[str] = ()
) -> list[StoredDevice]:
    """Return every device setting with at least `LEAST_SUBNETS` subnets of `space` measured before then, by name.

    Runs of any supernet of the same design space and options count, with any resolutions, except subnets that `space`
    does not have. The measurements of one agent on one setting are pooled, those of one subnet by their median, at
    undisturbed speed. An agent's settings are of one family. Boards searched as one device count as the first
    of them, at the speed of the middle one; the agents `without` are left out.
    """
    found: dict[tuple[str, str], dict[Architecture, list[float]]] = {}
    parameters: dict[tuple[str, str], Parameters] = {}
    for run in store.runs():
        if run.created_unix_s < before_unix_s and _same_space(run.settings, space):
            first: dict[tuple[str, str], str] = {}
            boards: dict[tuple[str, str], tuple[str, float]] = {}
            for record in store.devices(run.run_id):
                label, board = record.setting.label, record.board
                parameters[record.device, label] = profile_parameters(record.info.profile, record.setting)
                if board is not None and record.device not in without:
                    stands_for = first.setdefault((board.class_name, label), record.device)
                    boards[record.device, label] = stands_for, board.speed
            for row in store.latencies(run.run_id, before_unix_s):
                if row.device not in without:
                    device, speed = boards.get((row.device, row.setting_label), (row.device, 1.0))
                    subnets = found.setdefault((device, row.setting_label), {})
                    subnets.setdefault(row.architecture, []).append(row.latency_ms / speed)
    if not found:
        return []
    rows, features = _features(space, {subnet for subnets in found.values() for subnet in subnets})
    # Devices that measured the same subnets share one array: they are fitted faster, and take no memory of their own.
    tables: dict[tuple[int, ...], Floats] = {}
    devices = []
    for (device, label), subnets in sorted(found.items()):
        kept = [architecture for architecture in subnets if architecture in rows][-_MOST_SUBNETS:]
        if len(kept) >= LEAST_SUBNETS:
            latency = np.array([statistics.median(subnets[architecture]) for architecture in kept])
            chosen = tuple(rows[architecture] for architecture in kept)
            if chosen not in tables:
                tables[chosen] = features[list(chosen)]
            measured = MeasuredDevice(f"{device}/{label}", device, tables[chosen], latency)
            devices.append(StoredDevice(measured, parameters[device, label]))
    return devices


def _features(space: DesignSpace, subnets: Collection[Architecture]) -> tuple[dict[Architecture, int], Floats]:
    """Compute the features of subnets, each once: rows of the table (n, F), of those that `space` has."""
    held = list(subnets)
    try:
        genomes = space.encode(held)
    except ArchitectureError:
        held = [architecture for architecture in held if _holds(space, architecture)]
        genomes = space.encode(held) if held else space.sample(0, np.random.default_rng(0))
    return {architecture: row for row, architecture in enumerate(held)}, FeatureMap(space).features(genomes)


def _same_space(settings: dict[str, Any], space: DesignSpace) -> bool:
    return settings.get("design_space") == space.name and _fixed(settings.get("space_options", {})) == _fixed(
        dict(space.options)
    )


def _fixed(options: object) -> dict[str, Any] | None:
    """Return the options that decide the cost of a subnet: all but the resolutions. None where they are no options."""
    if not isinstance(options, dict):
        return None
    return {name: value for name, value in options.items() if name != "resolutions"}


def _holds(space: DesignSpace, architecture: Architecture) -> bool:
    try:
        space.encode([architecture])
    except ArchitectureError:
        return False
    return True
