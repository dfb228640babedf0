"""Priors on a device's latency weights before its first measurement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import InitVar, dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fleetnas.fleet_protocol.errors import UsageError

Floats = NDArray[np.float64]

#: Group of the columns that correct a level and are no physical cost: their weights are about 0.
INDICATOR = -1
#: Group of columns whose work other columns count already: their weights are a surcharge on it, often 0.
SURCHARGE = -2


@dataclass(frozen=True, eq=False)
class Hypothesis:
    """One Gaussian prior of a device's weights, up to the device's speed.

    Latency is `speed * (features @ w + d)`, w ~ N(mean, covariance). The model discrepancy d has standard deviation
    `discrepancy * (features @ mean)`: the error that no weights remove, relative to the latency. The speed is not part
    of the prior; the predictor estimates it by marginal likelihood.
    """

    mean: Floats  #: (F,)
    covariance: Floats  #: (F, F)
    discrepancy: float
    probability: float = 1.0
    transferred: bool = False  #: whether known devices made its mean


@dataclass(frozen=True, eq=False)
class Prior:
    """A few hypotheses, weighted by the marginal likelihood of the measurements under each; compared by identity."""

    hypotheses: tuple[Hypothesis, ...]
    #: Speed assumed until the first measurement, in ms per unit of `features @ mean`.
    scale_ms: float = 1.0
    #: Whether the hypotheses are a checked prior's.
    checked: InitVar[bool] = False

    def __post_init__(self, checked: bool) -> None:
        if not self.hypotheses:
            raise UsageError("a prior needs at least one hypothesis; it has none")
        for hypothesis in () if checked else self.hypotheses:
            size = len(hypothesis.mean)
            finite = np.isfinite(hypothesis.mean).all() and np.isfinite(hypothesis.covariance).all()
            if hypothesis.covariance.shape != (size, size) or size != self.size or not finite:
                raise UsageError(
                    f"a prior's means and covariances must be finite and of one size; found means of "
                    f"{[len(h.mean) for h in self.hypotheses]} and covariances of "
                    f"{[h.covariance.shape for h in self.hypotheses]}"
                )

    @cached_property
    def means(self) -> Floats:
        """Means of the hypotheses, (H, F)."""
        return np.array([h.mean for h in self.hypotheses], dtype=np.float64)

    @cached_property
    def discrepancies(self) -> Floats:
        """Relative model discrepancies of the hypotheses, (H,)."""
        return np.array([h.discrepancy for h in self.hypotheses], dtype=np.float64)

    @cached_property
    def log_probabilities(self) -> Floats:
        """Logarithms of the hypotheses' prior probabilities, (H,)."""
        return np.log(np.maximum([h.probability for h in self.hypotheses], 1e-300))

    @cached_property
    def transferred(self) -> NDArray[np.bool_]:
        """Which hypotheses use known devices, (H,)."""
        return np.array([h.transferred for h in self.hypotheses], dtype=np.bool_)

    def subset(self, places: NDArray[np.intp]) -> Prior:
        """Return the prior of the hypotheses at some places, at least one, their probabilities unchanged."""
        if len(places) == len(self.hypotheses):
            return self
        return Prior(tuple(self.hypotheses[place] for place in places.tolist()), self.scale_ms, checked=True)

    @property
    def size(self) -> int:
        """Number of features, F."""
        return len(self.hypotheses[0].mean)


def hierarchical_prior(
    reference: Floats,
    groups: Sequence[int] | NDArray[np.intp],
    *,
    discrepancies: Sequence[float] = (0.005, 0.015, 0.045),
    shared: float = 1.0,
    own: float = 0.5,
    indicator: float = 0.04,
    surcharge: float = 2.0,
    scale_ms: float = 1.0,
) -> Prior:
    """Make a prior for an unknown device.

    Args:
        reference: features of typical architectures, (n, F); only their column means matter.
        groups: which columns are of one physical cost, (F,): such columns have similar weights,
            w = w_group + deviation. `INDICATOR` columns are not of a cost, `SURCHARGE` columns of no further one.
        discrepancies: hypotheses on the model discrepancy, relative to the latency.
        shared: standard deviation of a group's common weight, relative to that weight.
        own: standard deviation of a column's deviation, relative to the group's weight.
        indicator: standard deviation of the weights of `INDICATOR` columns, relative to a typical latency.
        surcharge: standard deviation of the common weight of `SURCHARGE` columns, relative to what it would be if they
            were a group of their own.
        scale_ms: typical latency assumed until the first measurement.

    Every group is taken to cause the same share of a typical architecture's latency, which is 1.
    """
    typical = np.abs(np.asarray(reference, dtype=np.float64)).mean(axis=0)
    group_of = np.asarray(groups)
    labels = np.unique(group_of[group_of >= 0])
    mean = np.zeros(len(typical))
    covariance = np.zeros((len(typical), len(typical)))
    level = np.flatnonzero(group_of == INDICATOR)
    covariance[level, level] = indicator**2
    for label in [*labels, SURCHARGE]:
        members = np.flatnonzero(group_of == label)
        total = typical[members].sum()
        if total <= 0:
            continue
        weight = 1.0 / (len(labels) * total)
        if label == SURCHARGE:  # absent, or much the same everywhere: it lies in the runtime's code
            common, deviation = surcharge, own / 4
        else:
            mean[members] = weight
            common, deviation = shared, own
        block = np.full((len(members), len(members)), (common * weight) ** 2)
        # Deviations add up over the group's columns as their squares do: a group of many columns may
        # deviate as far, in all, as a group of one.
        spread = total / max(np.sqrt((typical[members] ** 2).sum()), 1e-300)
        block[np.diag_indices(len(members))] += (deviation * weight) ** 2 * min(spread, 2.0) ** 2
        covariance[np.ix_(members, members)] = block
    return Prior(
        tuple(Hypothesis(mean, covariance, discrepancy, 1.0 / len(discrepancies)) for discrepancy in discrepancies),
        scale_ms=scale_ms,
    )
