"""Fits of known devices: the weights of each under one base prior, and the covariance of any set of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fleetnas.coordinator.predictors.prior import Floats, Hypothesis, Prior, hierarchical_prior
from fleetnas.fleet_protocol.errors import UsageError

_FIT_ROUNDS = 12
#: Student-t degrees of freedom of a known device's residuals: measurements have long upper tails.
_DEGREES_OF_FREEDOM = 4.0
#: Standard deviation of a column's deviation in the base prior of the fits, relative to its group's weight.
_BASE_DEVIATION = 0.25
_SMALLEST_DISCREPANCY = 1e-3
_SMALLEST_LATENCY = 0.05


@dataclass(frozen=True, eq=False)
class MeasuredDevice:
    """The measurements of one device setting."""

    name: str
    family: str  #: settings of one device (batch sizes, thread counts) are of one family
    features: Floats  #: (n, F); devices that measured the same subnets may share one array, which saves time
    latency_ms: Floats  #: (n,)


@dataclass(frozen=True)
class DeviceFit:
    """A known device's weights per unit of its typical latency."""

    weights: Floats  #: (F,), scaled so that the typical architecture takes about 1
    typical_ms: float
    discrepancy: float  #: robust standard deviation of the residuals, relative to the latency
    precision: Floats  #: precision of each measurement's relative residual in the last round, (n,)


class BaseFactor:
    """A prior's mean, and a factor L of its covariance, so that a singular covariance needs no inverse."""

    def __init__(self, hypothesis: Hypothesis) -> None:
        values, vectors = np.linalg.eigh(hypothesis.covariance)
        kept = values > 1e-12 * values[-1]
        self.mean = hypothesis.mean
        self.factor: Floats = vectors[:, kept] * np.sqrt(values[kept])  #: (F, rank)
        self.covariance: Floats = self.factor @ self.factor.T  #: (F, F)


class Rows:
    """Features of measured architectures, with their products with the base prior; devices may share them."""

    def __init__(self, features: Floats, base: BaseFactor) -> None:
        self.features = features
        self.expected = features @ base.mean  #: (n,)
        self.white: Floats = features @ base.factor  #: (n, rank)
        #: Prior covariance of the latencies, (n, n), where that is the smaller system.
        self.joint: Floats | None = self.white @ self.white.T if len(features) < base.factor.shape[1] else None


def fit_device(device: MeasuredDevice, base: Prior) -> DeviceFit:
    """Fit a device's weights: maximum a posteriori under `base`, Student-t residuals; n may be small."""
    factor = base_factor(base)
    return _fit(Rows(device.features, factor), device.latency_ms, factor)


def base_factor(base: Prior) -> BaseFactor:
    """Factor the middle hypothesis of a prior."""
    return BaseFactor(base.hypotheses[len(base.hypotheses) // 2])


def _fit(rows: Rows, latency_ms: Floats, base: BaseFactor) -> DeviceFit:
    """Reweight and solve in turn, in the measurements' space where they are fewer than the weights."""
    level = float(np.median(latency_ms / np.maximum(rows.expected, _SMALLEST_LATENCY)))
    target = latency_ms / level
    white, residual_target = rows.white / target[:, None], 1.0 - rows.expected / target
    joint = None if rows.joint is None else rows.joint / np.multiply.outer(target, target)
    weights, discrepancy = np.ones(len(target)), 0.05
    for _ in range(_FIT_ROUNDS):
        root = np.sqrt(weights) / discrepancy
        if joint is None:
            scaled = white * root[:, None]
            system = scaled.T @ scaled  # one array twice: half the work of a general product
            system[np.diag_indices(len(system))] += 1.0
            solution = np.linalg.solve(system, scaled.T @ (root * residual_target))
            residual = residual_target - white @ solution
        else:
            system = joint * np.multiply.outer(root, root)
            system[np.diag_indices(len(system))] += 1.0
            whitened = np.linalg.solve(system, root * residual_target)
            solution = white.T @ (root * whitened)
            residual = whitened / root
        discrepancy = max(1.4826 * float(np.median(np.abs(residual))), _SMALLEST_DISCREPANCY)
        weights = (_DEGREES_OF_FREEDOM + 1.0) / (_DEGREES_OF_FREEDOM + (residual / discrepancy) ** 2)
    return DeviceFit(base.mean + base.factor @ solution, level, discrepancy, root**2)


@dataclass(frozen=True, eq=False)
class DeviceFits:
    """Fits of known devices under one base prior, each independent of the others; `fit_devices` makes them.

    A fit's covariance (F, F) is computed where a sum of covariances needs it, and is not kept: the fits of a thousand
    devices take a few megabytes.
    """

    devices: tuple[MeasuredDevice, ...]
    groups: NDArray[np.intp]  #: which columns are of one physical cost, (F,)
    typical: Floats  #: features of the typical architecture, whose latency is 1, (F,)
    reference: Floats  #: the same of absolute features, (1, F), as the reference of a hierarchical prior
    weights: Floats  #: weights per unit of the typical latency, (D, F); NaN where they cannot be computed
    typical_ms: Floats  #: latency of the typical architecture, ms, (D,); NaN as above
    levels: Floats  #: what the base prior's scale was multiplied by to make the typical latency 1, (D,)
    precisions: tuple[Floats, ...]  #: precision of each measurement's residual, relative to the latency, (n,) each
    base: BaseFactor
    shared: Mapping[int, Rows]  #: products of the features that several devices share, by their identity

    def __len__(self) -> int:
        return len(self.devices)

    @property
    def families(self) -> list[str]:
        """Family of each device, (D,)."""
        return [device.family for device in self.devices]

    def subset(self, places: Sequence[int]) -> DeviceFits:
        """Return the fits at some places, at least one; typical architecture and base prior stay those of all."""
        chosen = list(places)
        return replace(
            self,
            devices=tuple(self.devices[place] for place in chosen),
            weights=self.weights[chosen],
            typical_ms=self.typical_ms[chosen],
            levels=self.levels[chosen],
            precisions=tuple(self.precisions[place] for place in chosen),
        )

    def references(self, most: int) -> Floats:
        """Return features of at most `most` measured architectures, (n, F), at even distances over all devices."""
        ends = np.cumsum([len(device.features) for device in self.devices])
        rows = np.linspace(0, ends[-1] - 1, min(most, int(ends[-1]))).astype(np.intp)
        places = np.searchsorted(ends, rows, side="right")
        return np.array(
            [
                self.devices[place].features[row - ends[place]]
                for place, row in zip(places.tolist(), rows.tolist(), strict=True)
            ]
        )

    def covariance(self, places: Iterable[int]) -> Floats:
        """Sum of the posterior covariances of the fits at some places, (F, F)."""
        factor = self.base.factor
        found: Floats = np.zeros((len(factor), len(factor)))
        for place in places:
            device, level = self.devices[place], float(self.levels[place])
            rows = self.shared.get(id(device.features)) or Rows(device.features, self.base)
            target = device.latency_ms * level / self.typical_ms[place]
            scaled = rows.white * (np.sqrt(self.precisions[place]) / target)[:, None]
            if rows.joint is None:
                lower = np.linalg.cholesky(scaled.T @ scaled + np.eye(factor.shape[1]))
                part = np.linalg.solve(lower, factor.T)
                found += (part.T @ part) / level**2
            else:
                lower = np.linalg.cholesky(scaled @ scaled.T + np.eye(len(scaled)))
                part = np.linalg.solve(lower, scaled @ factor.T)
                found += (self.base.covariance - part.T @ part) / level**2
        return found


def fit_devices(
    devices: Sequence[MeasuredDevice], groups: Sequence[int] | NDArray[np.intp], reference: Floats | None = None
) -> DeviceFits:
    """Fit each device once. A device whose weights cannot be computed gets NaN.

    Args:
        devices: known device settings, at least one.
        groups: which columns are of one physical cost, (F,).
        reference: features of typical architectures, (n, F), so that a fit depends on its own device alone; None:
            everything that was measured.
    """
    if not devices:
        raise UsageError("a prior is learned from at least one measured device; use hierarchical_prior without any")
    group_of = np.asarray(groups, dtype=np.intp)
    tables = [device.features for device in devices] if reference is None else [reference]
    typical, absolute = _column_means(tables), _column_means([np.abs(table) for table in tables])[None]
    base = base_factor(hierarchical_prior(absolute, group_of, own=_BASE_DEVIATION))
    distinct = {id(device.features): device.features for device in devices}
    uses = Counter(id(device.features) for device in devices)
    shared = {key: Rows(features, base) for key, features in distinct.items() if uses[key] > 1}
    fits = [
        _fit_or_nan(shared.get(id(device.features)) or Rows(device.features, base), device.latency_ms, base)
        for device in devices
    ]
    levels = np.array([fit.weights @ typical for fit in fits])
    levels[~(levels > 0)] = np.nan
    return DeviceFits(
        devices=tuple(devices),
        groups=group_of,
        typical=typical,
        reference=absolute,
        weights=np.array([fit.weights for fit in fits]) / levels[:, None],
        typical_ms=np.array([fit.typical_ms for fit in fits]) * levels,
        levels=levels,
        precisions=tuple(fit.precision for fit in fits),
        base=base,
        shared=shared,
    )


def _fit_or_nan(rows: Rows, latency_ms: Floats, base: BaseFactor) -> DeviceFit:
    try:
        return _fit(rows, latency_ms, base)
    except np.linalg.LinAlgError:
        return DeviceFit(np.full(len(base.mean), np.nan), np.nan, np.nan, np.zeros(len(latency_ms)))


def _column_means(tables: Sequence[Floats]) -> Floats:
    found: Floats = np.sum([table.sum(axis=0) for table in tables], axis=0) / sum(len(table) for table in tables)
    return found
