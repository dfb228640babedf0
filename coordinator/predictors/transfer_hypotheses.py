"""Hypotheses on a new device's weights, given the moments of the known devices' weights."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fleetnas.coordinator.predictors.prior import Floats, Hypothesis, hierarchical_prior

#: Factor on the covariance between known devices: a handful of devices does not show the extremes.
_SPREAD = 2.0
#: Variances of the deviation from the known devices, relative to those of a device of which nothing is known.
_DEVIATIONS = (0.003, 0.1)
#: Relative model discrepancies, as in `Hypothesis`.
_DISCREPANCIES = (0.005, 0.02, 0.08)


@dataclass(frozen=True, eq=False)
class Moments:
    """Moments of the known devices' weights, each device scaled so that the typical architecture takes 1."""

    mean: Floats  #: (F,)
    between: Floats  #: covariance between the known devices, divided by their number, (F, F)
    uncertain: Floats  #: mean posterior covariance of the known devices' fits, (F, F)
    families: int  #: number of families that the known devices are of, at least 1


@dataclass(frozen=True, eq=False)
class Untransferred:
    """What is assumed of a device's weights without any known device, the typical architecture taking 1."""

    mean: Floats  #: (F,)
    narrow: Floats  #: covariance with deviations within a cost group of a quarter of the group's weight, (F, F)
    wide: Floats  #: the same, of half of the group's weight, (F, F)


def untransferred(reference: Floats, groups: Sequence[int] | NDArray[np.intp]) -> Untransferred:
    """Make the prior that uses no known device.

    Args:
        reference: features of typical architectures, (n, F); only their column means matter.
        groups: which columns are of one physical cost, (F,).
    """
    narrow, wide = (hierarchical_prior(reference, groups, own=own).hypotheses[0] for own in (0.25, 0.5))
    return Untransferred(wide.mean, narrow.covariance, wide.covariance)


def transfer_hypotheses(
    moments: Moments, unknown: Untransferred, groups: Sequence[int] | NDArray[np.intp]
) -> list[Hypothesis]:
    """Make all hypotheses on a new device's weights, of probability 1 each, in a fixed order.

    The caller sets their probabilities: a vote of the known devices, each under the hypotheses that the other families
    give. Equal covariances are one object.

    Args:
        moments: of the known devices' weights.
        unknown: what is assumed without them.
        groups: which columns are of one physical cost, (F,).
    """
    known = _SPREAD * moments.between + moments.uncertain
    covariances = [known + deviation * unknown.narrow for deviation in _DEVIATIONS]
    return [
        Hypothesis(moments.mean, covariance, discrepancy, transferred=True)
        for covariance, discrepancy in itertools.product(covariances, _DISCREPANCIES)
    ]
