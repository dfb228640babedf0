"""Metrics of a latency predictor on measurements that its fit has not seen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fleetnas.coordinator.predictors.prior import Floats


@dataclass(frozen=True)
class HeldOutError:
    """Error of a predictor on measurements that its fit has not seen."""

    mape_percent: float | None
    """Mean absolute percentage error; None where nothing was held out."""
    spearman: float | None
    """Rank correlation of predicted and measured latency, -1 to 1; None where undefined."""
    held_out: int
    """Measurements that the figures are taken over."""
    transfer_weight: float | None = None
    """Probability that the device is like known ones, 0 to 1; None without a prior that was learned from those."""


def spearman(first: Floats, second: Floats) -> float | None:
    """Rank correlation of two samples (n,), ties averaged, -1 to 1; None where one of them is constant."""
    ranks = [_ranks(np.asarray(sample)) for sample in (first, second)]
    centred = [rank - rank.mean() for rank in ranks]
    scale = float(np.sqrt((centred[0] ** 2).sum() * (centred[1] ** 2).sum()))
    return float(centred[0] @ centred[1]) / scale if scale > 0 else None


def _ranks(sample: Floats) -> Floats:
    _, inverse, counts = np.unique(sample, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    found: Floats = (last - (counts - 1) / 2.0)[inverse]
    return found
