"""Latency on a device before its first measurement, from its hardware's parameters and the devices already measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from coordinator.predictors.learned_prior import DeviceFit, MeasuredDevice, fit_device, learn_prior
from coordinator.predictors.prior import Floats, Hypothesis, Prior, hierarchical_prior
from device_profiles.profile import DeviceProfile
from fleet_protocol.errors import UsageError

#: Hypotheses on how far, in standardised parameters, devices resemble each other.
_LENGTHS = (0.5, 1.0, 2.0, 4.0)
#: Variance between devices of equal parameters, relative to that of devices far apart.
_NUGGETS = (0.01, 0.1, 0.3)
_MOST_REFERENCES = 500


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


def hardware_prior(
    devices: Sequence[MeasuredDevice],
    groups: Sequence[int] | Floats,
    parameters: Mapping[str, Mapping[str, float | None]],
    new: Mapping[str, float | None],
) -> Prior:
    """A prior for a device with parameters `new`: the learned one, its mean moved towards similar devices.

    The known devices' weights are taken as draws of one Gaussian process over their parameters; its length scale and
    nugget maximise the marginal likelihood of what the devices' fits foretell. Parameters that a device lacks are
    taken as the average of the others'.

    Args:
        devices: known device settings.
        groups: which columns are of one cost, (F,).
        parameters: of each known setting, by its name.
        new: of the new setting.
    """
    missing = [device.name for device in devices if device.name not in parameters]
    if missing:
        raise UsageError(f"hardware parameters are missing for {', '.join(missing)}; give them or leave those out")
    group_of = np.asarray(groups, dtype=np.intp)
    learned = learn_prior(devices, group_of)
    if len(devices) < 3:
        return learned
    reference = np.concatenate([device.features for device in devices])
    base = hierarchical_prior(reference, group_of)
    typical = reference.mean(axis=0)
    fits = [fit_device(device, base) for device in devices]
    weights = np.array([fit.weights / (typical @ fit.weights) for fit in fits])
    table = _standardised([parameters[device.name] for device in devices], new)
    rows = np.linspace(0, len(reference) - 1, min(_MOST_REFERENCES, len(reference))).astype(int)
    foretold = reference[rows] @ (weights - weights.mean(axis=0)).T
    length, nugget = _most_likely(table[:-1], foretold)
    among = _kernel(table[:-1], table[:-1], length) + nugget * np.eye(len(fits))
    towards = _kernel(table[-1:], table[:-1], length)[0]
    share = np.linalg.solve(among, towards)
    mean = learned.hypotheses[0].mean + share @ (weights - weights.mean(axis=0))
    # Similar devices leave less open; never less than a quarter, for parameters do not tell everything.
    left = max(0.25, float(1.0 + nugget - towards @ share) / (1.0 + nugget))
    return Prior(
        tuple(Hypothesis(mean, left * h.covariance, h.misfit, h.probability) for h in learned.hypotheses),
        scale_ms=_scale(fits, typical, share),
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
