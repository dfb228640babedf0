"""How well latencies are predicted that a fit has not seen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fleetnas.coordinator.predictors.prior import Floats


@dataclass(frozen=True)
class HeldOutError:
    """How well measurements are predicted that the fit has not seen."""

    mape_percent: float | None
    spearman: float | None
    held_out: int


def spearman(first: Floats, second: Floats) -> float | None:
    """Rank correlation of two samples, ties averaged; None where one does not vary."""
    ranks = [_ranks(np.asarray(sample)) for sample in (first, second)]
    centred = [rank - rank.mean() for rank in ranks]
    scale = float(np.sqrt((centred[0] ** 2).sum() * (centred[1] ** 2).sum()))
    return float(centred[0] @ centred[1]) / scale if scale > 0 else None


def _ranks(sample: Floats) -> Floats:
    _, inverse, counts = np.unique(sample, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    found: Floats = (last - (counts - 1) / 2.0)[inverse]
    return found
