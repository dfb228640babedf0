"""The best portfolio by integer programming (`scipy.optimize.milp`, HiGHS), or a bound on it where time ends."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fleetnas.coordinator.search.portfolio import Demands, Portfolio, portfolio_of

Floats = NDArray[np.float64]

#: Relative gap at which the solver stops: far below a hundredth of a point of accuracy.
_GAP = 1e-7


@dataclass(frozen=True)
class ExactPortfolio:
    """The best set that was found, and an upper bound on the mean accuracy of any set that serves as many demands."""

    portfolio: Portfolio | None  #: None where time ended before any set was found
    bound: float  #: weighted mean accuracy, a fraction
    proved: bool  #: whether `portfolio` is the best


def exact_portfolio(demands: Demands, models: int, *, time_limit_s: float = 60.0) -> ExactPortfolio:
    """Solve for the set of at most `models` candidates of highest worth.

    Per demand, its candidates fall into levels of equal accuracy. A binary variable per candidate chooses it; a
    continuous one per demand and level tells whether a chosen candidate reaches that level, so that the objective is
    the sum of the levels' gains (the radius formulation of Cornuejols, Nemhauser and Wolsey, 1980).

    Raises:
        ImportError: scipy is not installed.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    kept = demands.undominated()
    worth = demands.worth[kept]
    candidates = len(kept)
    gains: list[float] = []
    rows, columns, values = list[NDArray[np.intp]](), list[NDArray[np.intp]](), list[Floats]()
    for demand in np.flatnonzero(demands.can_be_served):
        levels = np.unique(worth[worth[:, demand] > 0, demand])
        # Level j is reached where a chosen candidate is worth at least levels[j]: z_j <= sum of those candidates.
        for level, gain in zip(levels, np.diff(levels, prepend=0.0), strict=True):
            reach = np.flatnonzero(worth[:, demand] >= level)
            row = len(gains)
            rows.append(np.full(len(reach) + 1, row))
            columns.append(np.append(reach, candidates + row))
            values.append(np.append(np.ones(len(reach)), -1.0))
            gains.append(float(gain))
    count = candidates + len(gains)
    cover = csr_array(
        (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))), shape=(len(gains), count)
    )
    most = csr_array((np.ones(candidates), (np.zeros(candidates, np.intp), np.arange(candidates))), shape=(1, count))
    found = milp(
        -np.concatenate([np.zeros(candidates), gains]),
        constraints=[LinearConstraint(cover, lb=0.0), LinearConstraint(most, ub=float(models))],
        bounds=Bounds(0.0, 1.0),
        integrality=np.concatenate([np.ones(candidates), np.zeros(len(gains))]),
        options={"time_limit": time_limit_s, "mip_rel_gap": _GAP},
    )
    portfolio = None
    if found.x is not None:
        portfolio = portfolio_of(demands, kept[np.flatnonzero(found.x[:candidates] > 0.5)].tolist())
    bound = -float(found.mip_dual_bound) if found.mip_dual_bound is not None else float("inf")
    return ExactPortfolio(portfolio, demands.accuracy_of_value(bound), found.status == 0)
