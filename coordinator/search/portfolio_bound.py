"""Bounds on what any portfolio of K models can reach, without a solver: how far a choice may be from the best.

Choosing K candidates is relaxed by a price per demand (Lagrangian relaxation of the assignment, as of the K-median
problem: Cornuejols, Fisher and Nemhauser 1977). Every vector of prices gives a bound; subgradient steps lower it
towards that of linear programming.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fleetnas.coordinator.search.portfolio import Demands, Portfolio

Floats = NDArray[np.float64]

#: Subgradient steps; steps without a better bound after which they are halved; relative gap that is no gap.
_STEPS, _PATIENCE, _SMALLEST_GAP = 400, 12, 1e-7


def mean_accuracy_bound(demands: Demands, chosen: Portfolio, models: int) -> float | None:
    """Return a mean accuracy, a fraction, that no portfolio of `models` candidates exceeds.

    None where the chosen one does not serve every demand that some candidate meets: means over different demands cannot
    be compared.
    """
    if chosen.served < int(demands.can_be_served.sum()) or not chosen.chosen:
        return None
    kept = demands.undominated()
    value = demands.value(chosen.chosen)
    value = _bound(demands.worth[kept], models, reached=value, enough=value * (1.0 + _SMALLEST_GAP))
    return max(demands.accuracy_of_value(value), chosen.mean_accuracy)


def worst_case_bound(demands: Demands, chosen: Portfolio, models: int) -> float:
    """Return a loss, a fraction, below which no portfolio of `models` candidates keeps its worst-served demand.

    Of portfolios that serve as many demands as the chosen one.
    """
    own = np.where(demands.meets, demands.accuracy[:, None], -np.inf).max(axis=0)
    loss = np.where(demands.meets, own - demands.accuracy[:, None], np.inf)
    limits = np.unique(loss[loss <= chosen.greatest_loss])
    low, high = 0, len(limits) - 1
    while low < high:
        middle = (low + high) // 2
        covers = (loss <= limits[middle]).astype(np.float64)
        reached = float(covers[list(chosen.chosen)].max(axis=0).sum())
        # Fewer demands than the chosen set serves can be served within this loss: the least loss is above it.
        if _bound(covers, models, reached=reached, enough=chosen.served - 1e-6) < chosen.served - 1e-6:
            low = middle + 1
        else:
            high = middle
    return float(limits[low]) if len(limits) else 0.0


def _bound(worth: Floats, models: int, *, reached: float, enough: float) -> float:
    """Return an upper bound on the sum over demands of the best worth among `models` rows.

    Some set has the sum `reached`. A bound below `enough` is not lowered further.

    For prices p of the demands it is sum(p) plus the `models` greatest sums over demands of max(worth - p, 0).
    """
    most = worth.max(axis=0)
    prices = most.copy()
    best, scale, waited = float(most.sum()), 1.0, 0
    count = min(models, len(worth))
    for _ in range(_STEPS):
        excess = np.maximum(worth - prices, 0.0)
        gains = excess.sum(axis=1)
        rows = np.argpartition(-gains, count - 1)[:count]
        bound = float(prices.sum() + gains[rows].sum())
        if bound < best - 1e-12 * abs(best):
            best, waited = bound, 0
        else:
            waited += 1
            if waited >= _PATIENCE:
                scale, waited = scale / 2.0, 0
        if best < enough:
            break
        slope = 1.0 - (excess[rows] > 0).sum(axis=0)  # of the bound by each price
        norm = float(slope @ slope)
        if norm == 0.0:
            break
        prices = np.clip(prices - scale * (bound - reached) / norm * slope, 0.0, most)
    return best
