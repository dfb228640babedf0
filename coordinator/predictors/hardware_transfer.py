"""Latency of a device before its first measurement, from hardware parameters and the devices already measured."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from fleetnas.coordinator.predictors.device_fit import DeviceFits
from fleetnas.coordinator.predictors.learned_prior import prior_of_fits
from fleetnas.coordinator.predictors.prior import Floats, Prior
from fleetnas.device_profiles.profile import DeviceProfile
from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.fleet_protocol.messages import RuntimeSetting

#: Hardware parameters by name: numbers, which can be interpolated; words, for kinds; None where unknown.
Parameters = Mapping[str, float | str | None]

#: Candidate length scales of the Gaussian process, in standardised parameters.
_LENGTHS = (0.5, 1.0, 2.0, 4.0)
#: Variance between devices of equal parameters, relative to that of devices far apart.
_NUGGETS = (0.01, 0.1, 0.3)
#: Correlation that remains between devices that differ in one kind, such as the runtime.
_ACROSS_KINDS = (0.1, 0.4, 1.0)
_MOST_REFERENCES = 500
_LEAST_DEVICES = 3


def profile_parameters(profile: DeviceProfile, setting: RuntimeSetting) -> dict[str, float | str | None]:
    """Parameters of a device setting: logarithms of measured figures (None where unknown), and its kind.

    The runtime is a kind, because its kernels are its own: the relative costs of two convolutions may differ more
    between two runtimes of a device than between two devices.
    """
    clocks = [c.max_clock_mhz for c in profile.clusters if c.max_clock_mhz]
    bench = profile.micro_benchmarks
    return {
        "runtime": f"{setting.runtime} {setting.provider} {setting.precision}",
        "threads": float(np.log(setting.threads)),
        "cores": float(np.log(profile.cores)),
        "clock": _log(max(clocks) if clocks else None),
        "gemm": _log(bench.gemm_gflops),
        "depthwise": _log(bench.depthwise_gflops),
        "copy": _log(bench.copy_gb_per_s),
        "overhead": _log(bench.session_overhead_us),
        "arm": float(profile.machine in ("aarch64", "arm64", "armv7l")),
        "accelerator": float(profile.accelerator is not None),
    }


def _log(value: float | None) -> float | None:
    return None if value is None else float(np.log(value))


class HardwareTransfer:
    """Priors for devices by their hardware parameters: the learned one, its mean moved towards similar devices.

    The known devices' weights are draws of one Gaussian process over their parameters; its length scale, its nugget
    and the correlation across kinds maximise the marginal likelihood of the devices' fits. A parameter that a device
    lacks is set to the average of the others'; an unknown kind differs from no other.
    """

    def __init__(self, fits: DeviceFits, parameters: Mapping[str, Parameters]) -> None:
        """Learn from the known devices.

        Args:
            fits: of known device settings; with fewer than three, parameters are not used.
            parameters: of each known setting, by its name.

        Raises:
            UsageError: a setting has no parameters.
        """
        missing = [device.name for device in fits.devices if device.name not in parameters]
        if missing:
            raise UsageError(f"hardware parameters are missing for {', '.join(missing)}; give them or leave those out")
        self._learned = prior_of_fits(fits)
        self._parameters = [parameters[device.name] for device in fits.devices]
        self._fits = fits
        self._apart = fits.weights - fits.weights.mean(axis=0)
        self._predicted = fits.references(_MOST_REFERENCES) @ self._apart.T

    def prior(self, new: Parameters) -> Prior:
        """The prior of a device setting with parameters `new`."""
        count = len(self._fits)
        if count < _LEAST_DEVICES:
            return self._learned
        table, differences = _standardised(self._parameters, new), _differences(self._parameters, new)
        length, across, nugget = _maximum_likelihood(table[:-1], differences[:-1, :-1], self._predicted)
        everyone = _kernel(table, differences, length, across)
        kernel, towards = everyone[:-1, :-1], everyone[-1, :-1]
        among = kernel + nugget * np.eye(count)
        share = np.asarray(np.linalg.solve(among, towards), dtype=np.float64)
        # Similar devices reduce the variance around the devices' mean, which is the learned covariance; by three
        # quarters at most, because parameters do not explain everything.
        left = float(1.0 + nugget - towards @ share) / float(1.0 + nugget - kernel.mean())
        left = min(max(left, 0.25), 1.0)
        mean = self._learned.hypotheses[0].mean + share @ self._apart
        moved = {id(h.covariance): left * h.covariance for h in self._learned.hypotheses if h.transferred}
        return Prior(
            tuple(
                replace(h, mean=mean, covariance=moved[id(h.covariance)]) if h.transferred else h
                for h in self._learned.hypotheses
            ),
            scale_ms=_scale(self._fits.typical_ms, share),
        )


def _scale(typical_ms: Floats, share: Floats) -> float:
    """Predict the typical latency, ms: the known ones' logarithms, interpolated like the weights."""
    levels = np.log(typical_ms)
    return float(np.exp(levels.mean() + share @ (levels - levels.mean())))


def _standardised(known: Sequence[Parameters], new: Parameters) -> Floats:
    """Standardise the numbers over all devices, (D + 1, P), `new` last; unknown ones are 0."""
    everyone = [*known, new]
    names = sorted({name for device in everyone for name, value in device.items() if not isinstance(value, str)})
    raw = np.array([[_value(device.get(name)) for name in names] for device in everyone])
    told = ~np.isnan(raw)
    count = np.maximum(told.sum(axis=0), 1)
    centred = np.where(told, raw - np.where(told, raw, 0.0).sum(axis=0) / count, 0.0)
    deviation = np.sqrt((centred**2).sum(axis=0) / count)
    varies = deviation > 1e-9
    found: Floats = centred[:, varies] / deviation[varies] / np.sqrt(max(int(varies.sum()), 1))
    return found


def _value(value: float | str | None) -> float:
    return np.nan if value is None else float(value)


def _differences(known: Sequence[Parameters], new: Parameters) -> Floats:
    """Number of kinds in which two devices differ, (D + 1, D + 1), `new` last."""
    everyone = [*known, new]
    names = sorted({name for device in everyone for name, value in device.items() if isinstance(value, str)})
    found = np.zeros((len(everyone), len(everyone)))
    for name in names:
        kinds = [device.get(name) for device in everyone]
        found += [[a is not None and b is not None and a != b for b in kinds] for a in kinds]
    return found


def _kernel(table: Floats, differences: Floats, length: float, across: float) -> Floats:
    distance = ((table[:, None] - table[None]) ** 2).sum(axis=2)
    found: Floats = np.exp(-0.5 * distance / length**2) * across**differences
    return found


def _maximum_likelihood(table: Floats, differences: Floats, predicted: Floats) -> tuple[float, float, float]:
    """Length scale, correlation across kinds and nugget of maximum likelihood, given latencies (references, D)."""
    best, found = -np.inf, (_LENGTHS[0], 1.0, _NUGGETS[0])
    devices = table.shape[0]
    for length, across, nugget in itertools.product(_LENGTHS, _ACROSS_KINDS if differences.any() else (1.0,), _NUGGETS):
        among = _kernel(table, differences, length, across) + nugget * np.eye(devices)
        solved = np.linalg.solve(among, predicted.T)
        variance = float((predicted.T * solved).sum()) / predicted.size
        likelihood = -devices * np.log(max(variance, 1e-300)) - float(np.linalg.slogdet(among)[1])
        if likelihood > best:
            best, found = likelihood, (length, across, nugget)
    return found
