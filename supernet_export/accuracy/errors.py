"""Errors of accuracy predictors on subnets that they were not fitted on, and the noise of the measured accuracies."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleetnas.supernet_export.accuracy.model import HeldOut

Values = NDArray[np.floating[Any]]


def held_out_error(predicted: Values, measured: Values, samples: int) -> HeldOut:
    """Return the error of `predicted` against `measured` accuracies, fractions, shape (n,), of a fit on `samples`."""
    error = 100 * (np.asarray(predicted, np.float64) - measured)
    return HeldOut(
        samples=samples,
        held_out=len(measured),
        spearman=rank_correlation(predicted, measured),
        mae_percent=float(np.abs(error).mean()),
        rmse_percent=float(np.sqrt((error**2).mean())),
    )


def rank_correlation(first: Values, second: Values) -> float:
    """Return Spearman's rank correlation, ties averaged; 0 if one side does not vary."""
    ranks = []
    for sample in (first, second):
        _, inverse, counts = np.unique(sample, return_inverse=True, return_counts=True)
        rank = (np.cumsum(counts) - (counts - 1) / 2.0)[inverse.reshape(-1)]
        ranks.append(rank - rank.mean())
    scale = float(np.sqrt((ranks[0] ** 2).sum() * (ranks[1] ** 2).sum()))
    return float(ranks[0] @ ranks[1]) / scale if scale > 0 else 0.0


def split_half_reliability(even: Values, odd: Values) -> float:
    """Return the reliability of accuracies on all images from those on the even and on the odd ones, each (n,).

    The rank correlation r of the halves gives 2r / (1 + r) for both together: Spearman (1910), *Correlation calculated
    from faulty data*, and Brown (1910), *Some experimental results in the correlation of mental abilities*. 0 where the
    halves do not agree at all.
    """
    half = max(0.0, rank_correlation(even, odd))
    return 2 * half / (1 + half)


def noise_ceiling(reliability: float) -> float:
    """Return the correlation with noisy measurements that a perfect prediction would have: the reliability's root.

    Spearman (1904), *The proof and measurement of association between two things*.
    """
    return math.sqrt(reliability)
