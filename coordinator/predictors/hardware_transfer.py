"""Latency of a device before its first measurement, from hardware parameters and the devices already measured."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

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
_ACROSS_KINDS = (0.05, 0.3, 0.6, 0.85, 0.95, 1.0)
#: Independent directions in which the relative costs of devices differ, about: as many outputs does a device give.
_DIRECTIONS = 10.0
#: Devices from which the hyperparameters are learned, at most, and the least probability of those that are kept.
_MOST_DEVICES, _LEAST_PROBABILITY = 150, 0.02
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

    The known devices' weights are draws of one Gaussian process over their parameters, with an unknown mean (ordinary
    kriging). Its length scale, its nugget and the correlation across kinds are averaged over by their restricted
    likelihood, so that few devices decide nothing. With settings of two runtimes and two thread counts it shows
    whether runtime or threads matter more, and which known settings the fourth one resembles. A parameter
    that a device lacks is set to the average of the others'; an unknown kind differs from no other. Hypotheses that no
    known device made stay as they are.
    """

    def __init__(self, fits: DeviceFits, parameters: Mapping[str, Parameters]) -> None:
        """Learn from the known devices.

        Args:
            fits: of known device settings; with fewer than three, parameters are not used.
            parameters: of each known setting, by its name.

        Raises:
            UsageError: a setting has no parameters.
            LinAlgError: the weights of a device cannot be computed.
        """
        missing = [device.name for device in fits.devices if device.name not in parameters]
        if missing:
            raise UsageError(f"hardware parameters are missing for {', '.join(missing)}; give them or leave those out")
        #: The prior of a device setting of unknown hardware.
        self.average = prior_of_fits(fits)
        self._fits = fits
        self._space = _ParameterSpace([parameters[device.name] for device in fits.devices])
        self._processes = self._probable_processes() if len(fits) >= _LEAST_DEVICES else []

    def _probable_processes(self) -> list[tuple[float, _Process]]:
        """Return the processes of probable hyperparameters over all devices, each with its probability."""
        chosen = np.unique(np.linspace(0, len(self._fits) - 1, min(_MOST_DEVICES, len(self._fits))).astype(np.intp))
        apart = self._fits.weights[chosen] - self._fits.weights.mean(axis=0)
        predicted = self._fits.references(_MOST_REFERENCES) @ apart.T
        scatter = predicted.T @ predicted
        some = self._space.subset(chosen)
        grid = list(itertools.product(_LENGTHS, _ACROSS_KINDS if some.kinds_differ() else (1.0,), _NUGGETS))
        logs = np.array([_Process(some, *point).log_likelihood(scatter) for point in grid])
        chances = np.exp(logs - logs.max())
        chances /= chances.sum()
        kept = np.flatnonzero(chances >= min(_LEAST_PROBABILITY, float(chances.max())))
        total = float(chances[kept].sum())
        return [(float(chances[place]) / total, _Process(self._space, *grid[place])) for place in kept]

    def prior(self, new: Parameters) -> Prior:
        """The prior of a device setting with parameters `new`."""
        if not self._processes:
            return self.average
        shares, left = np.zeros(len(self._fits)), 0.0
        for chance, process in self._processes:
            share, variance = process.predict(new)
            shares += chance * share
            left += chance * variance
        # Similar devices reduce the variance around the devices' mean, which is the learned covariance; by three
        # quarters at most, because parameters do not explain everything.
        left = min(max(left, 0.25), 1.0)
        moved = (shares - 1.0 / len(shares)) @ self._fits.weights
        # Equal covariances stay one object.
        covariances = {id(h.covariance): left * h.covariance for h in self.average.hypotheses if h.transferred}
        return Prior(
            tuple(
                replace(h, mean=h.mean + moved, covariance=covariances[id(h.covariance)]) if h.transferred else h
                for h in self.average.hypotheses
            ),
            scale_ms=float(np.exp(shares @ np.log(self._fits.typical_ms))),
        )


class _ParameterSpace:
    """Known devices' parameters: numbers, standardised over them, and kinds as codes."""

    def __init__(self, known: Sequence[Parameters]) -> None:
        names = sorted({name for device in known for name in device})
        words = [name for name in names if any(isinstance(device.get(name), str) for device in known)]
        numbers = [name for name in names if name not in words]
        raw = np.array([[_value(device.get(name)) for name in numbers] for device in known]).reshape(len(known), -1)
        told = ~np.isnan(raw)
        count = np.maximum(told.sum(axis=0), 1)
        mean = np.where(told, raw, 0.0).sum(axis=0) / count
        deviation = np.sqrt(np.where(told, (raw - mean) ** 2, 0.0).sum(axis=0) / count)
        varies = deviation > 1e-9
        self._names = [name for name, kept in zip(numbers, varies.tolist(), strict=True) if kept]
        self._mean, self._scale = mean[varies], deviation[varies] * np.sqrt(max(int(varies.sum()), 1))
        self._words = words
        self._codes: dict[str, dict[str, int]] = {name: {} for name in words}
        #: Standardised numbers of each known device, (D, P); unknown ones are 0, the average.
        self.numbers = np.array([self._standardised(device) for device in known]).reshape(len(known), -1)
        #: Codes of its kinds, (D, K); -1 where unknown.
        self.kinds = np.array([self._coded(device) for device in known], dtype=np.intp).reshape(len(known), -1)

    def subset(self, places: NDArray[np.intp]) -> _ParameterSpace:
        """Return the same space with some of the devices."""
        found = copy.copy(self)
        found.numbers, found.kinds = self.numbers[places], self.kinds[places]
        return found

    def kinds_differ(self) -> bool:
        """Whether two devices differ in a kind."""
        return any(len(set(column[column >= 0].tolist())) > 1 for column in self.kinds.T)

    def position(self, new: Parameters) -> tuple[Floats, NDArray[np.intp]]:
        """Return the numbers (1, P) and kinds (1, K) of another device."""
        return self._standardised(new)[None], np.array(self._coded(new), dtype=np.intp)[None]

    def _standardised(self, device: Parameters) -> Floats:
        raw = np.array([_value(device.get(name)) for name in self._names])
        return np.where(np.isnan(raw), 0.0, (raw - self._mean) / self._scale)

    def _coded(self, device: Parameters) -> list[int]:
        found = []
        for name in self._words:
            word, codes = device.get(name), self._codes[name]
            found.append(codes.setdefault(word, len(codes)) if isinstance(word, str) else -1)
        return found


class _Process:
    """A Gaussian process over device parameters with an unknown mean, its variance relative to that between devices."""

    def __init__(self, space: _ParameterSpace, length: float, across: float, nugget: float) -> None:
        self._space, self._length, self._across, self._nugget = space, length, across, nugget
        kernel = self._kernel(space.numbers, space.kinds)
        self._among = kernel + nugget * np.eye(len(kernel))
        self._inverse = np.asarray(np.linalg.inv(self._among), dtype=np.float64)
        self._of_mean = self._inverse.sum(axis=1)
        self._around_mean = 1.0 + nugget - float(kernel.mean())

    def _kernel(self, numbers: Floats, kinds: NDArray[np.intp]) -> Floats:
        """Correlations of some devices with the known ones, (n, D)."""
        known = self._space
        squares = (numbers**2).sum(axis=1)[:, None] + (known.numbers**2).sum(axis=1)
        distance = np.maximum(squares - 2.0 * numbers @ known.numbers.T, 0.0)
        differences = np.zeros_like(distance)
        for mine, theirs in zip(kinds.T, known.kinds.T, strict=True):
            differences += (mine[:, None] != theirs) & (mine[:, None] >= 0) & (theirs >= 0)
        found: Floats = np.exp(-0.5 * distance / self._length**2) * self._across**differences
        return found

    def log_likelihood(self, scatter: Floats) -> float:
        """Restricted log likelihood, given sums of products of the devices' outputs, (D, D), up to their mean."""
        freedom, precision = len(scatter) - 1, float(self._of_mean.sum())
        projected = self._inverse - np.multiply.outer(self._of_mean, self._of_mean) / precision
        variance = max(float((projected * scatter).sum()) / freedom, 1e-300)
        determinant = float(np.linalg.slogdet(self._among)[1]) + float(np.log(precision))
        return -0.5 * _DIRECTIONS * (freedom * float(np.log(variance)) + determinant)

    def predict(self, new: Parameters) -> tuple[Floats, float]:
        """Return a new device's shares of the known ones, (D,), their sum 1, and its variance.

        The variance is relative to that of a device of which no parameter is known.
        """
        towards = self._kernel(*self._space.position(new))[0]
        share = self._inverse @ towards
        share += self._of_mean * (1.0 - float(share.sum())) / float(self._of_mean.sum())
        variance = 1.0 + self._nugget - 2.0 * float(share @ towards) + float(share @ self._among @ share)
        return share, variance / self._around_mean


def _value(value: float | str | None) -> float:
    return np.nan if value is None or isinstance(value, str) else float(value)
