"""Latency on a device before its first measurement, from its hardware's parameters and the devices already measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from coordinator.predictors.learned_prior import DeviceFit, MeasuredDevice, fit_device, learn_prior
from coordinator.predictors.prior import Floats, Hypothesis, Prior, hierarchical_prior
from device_profiles.profile import DeviceProfile
from fleet_protocol.errors import UsageError

#: Hypotheses on how far, in standardised parameters, devices resemble each other.
_LENGTHS = (0.5, 1.0, 2.0, 4.0)
#: Variance between devices of equal parameters, relative to that of devices far apart.
_NUGGETS = (0.01, 0.1, 0.3)
_MOST_REFERENCES = 500
_LEAST_DEVICES = 3


def profile_parameters(profile: DeviceProfile, threads: int) -> dict[str, float | None]:
    """Hardware parameters of a device setting, logarithms of what is measured; None where unknown."""
    clocks = [c.max_clock_mhz for c in profile.clusters if c.max_clock_mhz]
    bench = profile.micro_benchmarks
    return {
        "threads": float(np.log(threads)),
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

    The known devices' weights are taken as draws of one Gaussian process over their parameters; its length scale and
    nugget maximise the marginal likelihood of what the devices' fits foretell. Parameters that a device lacks are
    taken as the average of the others'.
    """

    def __init__(
        self,
        devices: Sequence[MeasuredDevice],
        groups: Sequence[int] | NDArray[np.intp],
        parameters: Mapping[str, Mapping[str, float | None]],
    ) -> None:
        """
        Args:
            devices: known device settings; with fewer than three, parameters tell nothing.
            groups: which columns are of one cost, (F,).
            parameters: of each known setting, by its name.
        """
        missing = [device.name for device in devices if device.name not in parameters]
        if missing:
            raise UsageError(f"hardware parameters are missing for {', '.join(missing)}; give them or leave those out")
        group_of = np.asarray(groups, dtype=np.intp)
        self._learned = learn_prior(devices, group_of)
        self._parameters = [parameters[device.name] for device in devices]
        reference = np.concatenate([device.features for device in devices])
        base = hierarchical_prior(reference, group_of)
        self._typical = reference.mean(axis=0)
        self._fits = [fit_device(device, base) for device in devices]
        weights = np.array([fit.weights / (self._typical @ fit.weights) for fit in self._fits])
        self._apart = weights - weights.mean(axis=0)
        rows = np.linspace(0, len(reference) - 1, min(_MOST_REFERENCES, len(reference))).astype(int)
        self._foretold = reference[rows] @ self._apart.T

    def prior(self, new: Mapping[str, float | None]) -> Prior:
        """The prior of a device setting with parameters `new`."""
        count = len(self._fits)
        if count < _LEAST_DEVICES:
            return self._learned
        table = _standardised(self._parameters, new)
        length, nugget = _most_likely(table[:-1], self._foretold)
        kernel = _kernel(table[:-1], table[:-1], length)
        among = kernel + nugget * np.eye(count)
        towards = _kernel(table[-1:], table[:-1], length)[0]
        share = np.linalg.solve(among, towards)
        # Of the spread around the devices' mean, which is what the learned covariance tells, similar devices leave
        # less open; never less than a quarter, for parameters do not tell everything.
        left = float(1.0 + nugget - towards @ share) / float(1.0 + nugget - kernel.mean())
        left = min(max(left, 0.25), 1.0)
        mean = self._learned.hypotheses[0].mean + share @ self._apart
        return Prior(
            tuple(Hypothesis(mean, left * h.covariance, h.misfit, h.probability) for h in self._learned.hypotheses),
            scale_ms=_scale(self._fits, self._typical, share),
        )


def _scale(fits: Sequence[DeviceFit], typical: Floats, share: Floats) -> float:
    """Typical latency foretold, ms: the known ones' logarithms, interpolated like the weights."""
    levels = np.log([fit.typical_ms * float(typical @ fit.weights) for fit in fits])
    return float(np.exp(levels.mean() + share @ (levels - levels.mean())))


def _standardised(known: Sequence[Mapping[str, float | None]], new: Mapping[str, float | None]) -> Floats:
    """Parameters as columns of mean 0 and variance 1 over all devices, `new` last; unknown ones are 0."""
    everyone = [*known, new]
    names = sorted({name for device in everyone for name in device})
    raw = np.array([[_value(device.get(name)) for name in names] for device in everyone])
    told = ~np.isnan(raw)
    count = np.maximum(told.sum(axis=0), 1)
    centred = np.where(told, raw - np.where(told, raw, 0.0).sum(axis=0) / count, 0.0)
    deviation = np.sqrt((centred**2).sum(axis=0) / count)
    varies = deviation > 1e-9
    found: Floats = centred[:, varies] / deviation[varies] / np.sqrt(max(int(varies.sum()), 1))
    return found


def _value(value: float | None) -> float:
    return np.nan if value is None else float(value)


def _kernel(first: Floats, second: Floats, length: float) -> Floats:
    distance = ((first[:, None] - second[None]) ** 2).sum(axis=2)
    found: Floats = np.exp(-0.5 * distance / length**2)
    return found


def _most_likely(table: Floats, foretold: Floats) -> tuple[float, float]:
    """Length scale and nugget under which the devices' foretold latencies (references, D) are most likely."""
    best, found = -np.inf, (_LENGTHS[0], _NUGGETS[0])
    devices = table.shape[0]
    for length in _LENGTHS:
        for nugget in _NUGGETS:
            among = _kernel(table, table, length) + nugget * np.eye(devices)
            solved = np.linalg.solve(among, foretold.T)
            variance = float((foretold.T * solved).sum()) / foretold.size
            likelihood = -devices * np.log(max(variance, 1e-300)) - float(np.linalg.slogdet(among)[1])
            if likelihood > best:
                best, found = likelihood, (length, nugget)
    return found
