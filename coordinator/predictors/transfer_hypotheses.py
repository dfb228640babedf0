"""Hypotheses on a new device's weights, given the moments of the known devices' weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fleetnas.coordinator.predictors.prior import Floats, Hypothesis, hierarchical_prior

#: Variances of the deviation from the known devices, relative to those of a device of which nothing is known.
_DEVIATIONS = (0.003, 0.1)
#: Relative model discrepancies, as in `Hypothesis`, of a device like the known ones.
_DISCREPANCIES = (0.005, 0.0125, 0.03, 0.08, 0.16)
#: The same where the contrast is of another amplitude: deviations and discrepancies.
_AMPLITUDE_DEVIATIONS = (0.003, 0.03, 0.1, 0.3)
_COARSE_DISCREPANCIES = (0.01, 0.025, 0.06, 0.15)
#: Variance of the amplitude of a cost group's contrast, beside that of the whole contrast, which is 1.
_AMPLITUDE_OF_GROUP = 0.25
#: Probabilities, before any family has voted, of a device like the known ones, of one with another amplitude, and of an
#: unlike one. Another amplitude fits by chance where measurements are few and noisy, so it must be voted for.
_LIKE, _OTHER_AMPLITUDE, _UNLIKE = 0.7, 0.05, 0.25
#: Variances of an unlike device's weights, relative to those of a device of which nothing is known. The spread of a
#: real device's latencies is a quarter to a half of what the largest one expects.
_SCALES = (0.03, 0.1, 0.3, 1.0)
#: Deviations along the network: share that neighbouring layers have in common, and distance, in columns of one cost
#: group, within which layers count as neighbours.
_COMMON, _DISTANCE = 0.7, 5.0


@dataclass(frozen=True, eq=False)
class Moments:
    """Moments of the known devices' weights, each device scaled so that the typical architecture takes 1."""

    mean: Floats  #: (F,)
    between: Floats  #: covariance between the known devices, divided by their number, (F, F)
    uncertain: Floats  #: mean posterior covariance of the known devices' fits, (F, F)
    families: int  #: number of families that the known devices are of, at least 1


@dataclass(frozen=True, eq=False)
class Untransferred:
    """Assumptions on a device's weights without any known device, the typical architecture taking 1."""

    mean: Floats  #: (F,)
    narrow: Floats  #: covariance with independent deviations of a quarter of their cost group's weight, (F, F)
    smooth: Floats  #: with deviations of half of their cost group's weight, similar in neighbouring layers, (F, F)


def untransferred(reference: Floats, groups: Sequence[int] | NDArray[np.intp]) -> Untransferred:
    """Make the prior that uses no known device.

    Args:
        reference: features of typical architectures, (n, F); only their column means matter.
        groups: which columns are of one physical cost, (F,), in the order of the network's layers.
    """
    narrow, wide, none = (hierarchical_prior(reference, groups, own=own).hypotheses[0] for own in (0.25, 0.5, 0.0))
    group_of = np.asarray(groups)
    smooth = none.covariance.copy()
    deviation = np.sqrt(np.maximum(np.diagonal(wide.covariance) - np.diagonal(none.covariance), 0.0))
    for label in np.unique(group_of):
        members = np.flatnonzero(group_of == label)
        apart = np.abs(np.subtract.outer(np.arange(len(members)), np.arange(len(members))))
        alike = np.eye(len(members))
        if label >= 0:
            alike = _COMMON * np.exp(-apart / _DISTANCE) + (1.0 - _COMMON) * alike
        smooth[np.ix_(members, members)] += alike * np.multiply.outer(deviation[members], deviation[members])
    return Untransferred(wide.mean, narrow.covariance, smooth)


def transfer_hypotheses(
    moments: Moments, unknown: Untransferred, groups: Sequence[int] | NDArray[np.intp]
) -> list[Hypothesis]:
    """Make all hypotheses on a new device's weights, in a fixed order.

    The device is like the known ones; or it differs from them in the amplitude of what sets them apart from a device
    of which nothing is known, as a whole and by cost group; or it is unlike them, with the scale of its weights'
    deviations unknown. The probabilities are those before any known family has voted; the caller adds the votes, each
    under the hypotheses that the other families give. Equal covariances are one object.

    Args:
        moments: of the known devices' weights.
        unknown: assumptions without them.
        groups: which columns are of one physical cost, (F,).
    """
    # Of a Gaussian known by a sample of n: its covariance without bias, n / (n - 1), and the mean's own uncertainty,
    # 1 + 1 / n. The settings of one family count as one draw; a single one is taken to vary as two do.
    families = max(moments.families, 2)
    spread = (families + 1.0) / (families - 1.0)
    known = spread * moments.between + moments.uncertain
    amplitudes = _amplitudes(moments.mean - unknown.mean, np.asarray(groups))
    like = [known + deviation * unknown.narrow for deviation in _DEVIATIONS]
    other = [known + amplitudes + deviation * unknown.narrow for deviation in _AMPLITUDE_DEVIATIONS]
    unlike = [scale * unknown.smooth for scale in _SCALES]
    return [
        *_grid(moments.mean, like, _DISCREPANCIES, _LIKE, transferred=True),
        *_grid(moments.mean, other, _COARSE_DISCREPANCIES, _OTHER_AMPLITUDE, transferred=True),
        *_grid(unknown.mean, unlike, _COARSE_DISCREPANCIES, _UNLIKE, transferred=False),
    ]


def _grid(
    mean: Floats,
    covariances: Sequence[Floats],
    discrepancies: Sequence[float],
    probability: float,
    *,
    transferred: bool,
) -> list[Hypothesis]:
    """All pairs of a covariance (F, F) and a discrepancy; together they have the given probability."""
    share = probability / (len(covariances) * len(discrepancies))
    return [
        Hypothesis(mean, covariance, discrepancy, share, transferred)
        for covariance in covariances
        for discrepancy in discrepancies
    ]


def _amplitudes(contrast: Floats, groups: NDArray[np.intp]) -> Floats:
    """Covariance (F, F) of a contrast (F,) whose amplitude, as a whole and by cost group, is unknown."""
    found: Floats = np.multiply.outer(contrast, contrast)
    for label in np.unique(groups):
        part = np.where(groups == label, contrast, 0.0)
        found += _AMPLITUDE_OF_GROUP * np.multiply.outer(part, part)
    return found
