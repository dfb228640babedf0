"""Choose few subnets for many demands: at most K, each demand served by the best chosen one that meets it.

A demand is a latency target on a device setting. The mean accuracy of the served demands is monotone submodular in the
chosen set, so greedy choice is within 1 - 1/e of the best set (Nemhauser, Wolsey and Fisher 1978); swaps improve it,
and `exact_portfolio` finds the best set, or bounds it. Sets that serve more demands go before those that serve fewer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fleetnas.fleet_protocol.errors import UsageError

Floats = NDArray[np.float64]

#: Sweeps over all swaps at most; each improves the set, and two or three reach the end.
_MOST_SWEEPS = 20
#: An improvement of the mean accuracy smaller than this is rounding.
_SMALLEST_GAIN = 1e-12
#: Random sets per size that swaps begin from as well, up to this size: small sets end in poor ones more often.
_RESTARTS, _RESTARTED = 6, 8
#: Sizes up to which sets are improved by swaps: beyond, one model more or less hardly matters.
_SWAPPED = 32
_SEED = 0x9F011


class Demands:
    """Candidates (n) and demands (P): which candidate meets which demand, and how accurate it is."""

    def __init__(self, accuracy: Floats, meets: NDArray[np.bool_], weights: Floats | None = None) -> None:
        """Make the problem.

        Args:
            accuracy: of each candidate, fractions, (n,).
            meets: whether candidate i meets demand p, (n, P).
            weights: of each demand, above 0, (P,); all equal without.

        Raises:
            UsageError: shapes differ, or a number cannot be used.
        """
        count, demands = meets.shape
        weights = np.ones(demands) if weights is None else np.asarray(weights, dtype=np.float64)
        if accuracy.shape != (count,) or weights.shape != (demands,) or not count or not demands:
            raise UsageError(
                "a portfolio needs candidates and demands, an accuracy per candidate and a weight per demand; found "
                f"{accuracy.shape}, {meets.shape} and {weights.shape}"
            )
        if not (np.isfinite(weights).all() and (weights > 0).all()):
            raise UsageError(f"weights must be finite and above 0; found {weights[~(weights > 0)][:5].tolist()}")
        if not np.isfinite(accuracy).all():
            raise UsageError("the accuracy of every candidate must be finite")
        self.accuracy, self.meets, self.weights = accuracy, meets, weights / weights.sum()
        #: Demands that some candidate meets, (P,).
        self.can_be_served: NDArray[np.bool_] = np.any(meets, axis=0)
        # Serving one more demand must outweigh any gain of accuracy on all others.
        span = float(np.ptp(accuracy)) + 1e-6
        offset = span / float(self.weights.min()) * 2.0 - float(accuracy.min())
        #: Worth of candidate i to demand p, (n, P): its weight times accuracy plus an offset, 0 where it misses it.
        self.worth: Floats = np.where(meets, (accuracy + offset)[:, None] * self.weights, 0.0)
        self._offset = offset

    def served_by(self, chosen: Sequence[int]) -> NDArray[np.intp]:
        """Return the most accurate chosen candidate of each demand, an index into candidates, -1: none, (P,)."""
        if not chosen:
            return np.full(len(self.weights), -1, dtype=np.intp)
        rows = np.array(sorted(chosen), dtype=np.intp)
        best = rows[self.worth[rows].argmax(axis=0)]
        return np.where(self.worth[rows].max(axis=0) > 0, best, -1)

    def mean_accuracy(self, chosen: Sequence[int]) -> float:
        """Return the weighted mean accuracy of the served demands, a fraction; 0 where none is served."""
        by = self.served_by(chosen)
        served = by >= 0
        if not served.any():
            return 0.0
        return float(np.average(self.accuracy[by[served]], weights=self.weights[served]))

    def losses(self, chosen: Sequence[int]) -> Floats:
        """Return how much less accurate each demand is served than by its own best candidate, (P,); infinite: unserved.

        0 for a demand that no candidate meets.
        """
        by = self.served_by(chosen)
        best = np.where(self.meets, self.accuracy[:, None], -np.inf).max(axis=0)
        found = np.where(by >= 0, best - self.accuracy[by], np.inf)
        return np.where(self.can_be_served, found, 0.0)

    def value(self, chosen: Sequence[int]) -> float:
        """Return the objective: worth of the best chosen candidate, summed over the demands."""
        return float(self.worth[list(chosen)].max(axis=0).sum()) if chosen else 0.0

    def accuracy_of_value(self, value: float) -> float:
        """Convert a value that serves every demand that can be served to a weighted mean accuracy, a fraction."""
        return value / float(self.weights[self.can_be_served].sum()) - self._offset

    def undominated(self) -> NDArray[np.intp]:
        """Return the candidates that no other, at least as accurate one, equals in every demand, ascending."""
        order = np.lexsort((-self.meets.sum(axis=1), -self.accuracy))
        kept: list[int] = []
        covers = np.zeros((0, len(self.weights)), dtype=np.bool_)
        for row in order:
            mine = self.meets[row]
            if not mine.any() or (covers[:, mine].all(axis=1)).any():
                continue
            kept.append(int(row))
            covers = np.concatenate([covers, mine[None]])
        return np.sort(np.array(kept, dtype=np.intp))


@dataclass(frozen=True)
class Portfolio:
    """The chosen candidates, and what they are worth."""

    #: Indices of candidates, in the order in which they were chosen.
    chosen: tuple[int, ...]
    #: Weighted mean accuracy of the served demands, a fraction.
    mean_accuracy: float
    #: Number of demands that are served.
    served: int
    #: Greatest loss of a served demand against its own best candidate, a fraction.
    greatest_loss: float


def choose_portfolio(demands: Demands, models: int) -> Portfolio:
    """Choose at most `models` candidates by greedy choice and swaps; `UsageError` unless `models` is at least 1."""
    return portfolio_curve(demands, models)[-1]


def choose_worst_case(demands: Demands, models: int) -> Portfolio:
    """Choose at most `models` candidates so that the greatest loss of a served demand is least; of equals by the mean.

    The loss of a demand is against its own most accurate candidate. Bisection over the losses that occur: a loss is
    possible where a portfolio of the candidates within it serves as many demands as one without a limit.
    """
    best = choose_portfolio(demands, models)
    own = np.where(demands.meets, demands.accuracy[:, None], -np.inf).max(axis=0)
    loss = np.where(demands.meets, own - demands.accuracy[:, None], np.inf)
    limits = np.unique(loss[loss <= best.greatest_loss])
    low, high = 0, len(limits) - 1
    while low < high:
        middle = (low + high) // 2
        within = Demands(demands.accuracy, loss <= limits[middle], demands.weights)
        found = choose_portfolio(within, models)
        if found.served >= best.served:
            best = portfolio_of(demands, found.chosen)
            high = min(middle, int(np.searchsorted(limits, best.greatest_loss)))
        else:
            low = middle + 1
    return best


def portfolio_curve(demands: Demands, most: int) -> list[Portfolio]:
    """Return the portfolios of 1, 2, ... `most` candidates; shorter where more candidates change nothing.

    The first pass adds candidates one by one, the second drops them again from the largest set: the two end in
    different sets, and the better one counts. Both are improved by swaps, and so are random sets where they are small.
    """
    if most < 1:
        raise UsageError(f"a portfolio has at least 1 model; found {most}")
    kept = demands.undominated()
    if not len(kept):
        return [portfolio_of(demands, [])]
    worth = demands.worth[kept]
    sets = _grown(worth, max(most, _SWAPPED))
    rng = np.random.default_rng(_SEED)
    smaller = sets[-1]
    for count in range(len(sets) - 1, 0, -1):
        smaller = _drop(worth, smaller)
        starts = [smaller]
        if count <= _RESTARTED:
            starts += [rng.choice(len(worth), min(count, len(worth)), replace=False).tolist() for _ in range(_RESTARTS)]
        if count <= _SWAPPED:
            starts = [_with_swaps(worth, start) for start in starts]
        tried = [sets[count - 1], *starts]
        sets[count - 1] = smaller = max(tried, key=lambda chosen: float(_best(worth, chosen).sum()))
    return [portfolio_of(demands, kept[chosen].tolist()) for chosen in sets[:most]]


def _grown(worth: Floats, most: int) -> list[list[int]]:
    """Add the candidate of greatest gain again and again; return the sets of 1, 2, ... `most`."""
    sets: list[list[int]] = []
    chosen: list[int] = []
    while len(sets) < most:
        gains = np.maximum(worth, _best(worth, chosen)).sum(axis=1)
        row = int(gains.argmax())
        if chosen and gains[row] <= _best(worth, chosen).sum() + _SMALLEST_GAIN:
            break
        chosen = [*chosen, row]
        if len(chosen) <= _SWAPPED:
            chosen = _with_swaps(worth, chosen)
        sets.append(chosen)
    return sets


def _drop(worth: Floats, chosen: list[int]) -> list[int]:
    """Drop the candidate that is missed least."""
    rests = [chosen[:place] + chosen[place + 1 :] for place in range(len(chosen))]
    return max(rests, key=lambda rest: float(_best(worth, rest).sum()))


def _best(worth: Floats, chosen: Sequence[int]) -> Floats:
    return worth[list(chosen)].max(axis=0) if chosen else np.zeros(worth.shape[1])


def _with_swaps(worth: Floats, chosen: list[int]) -> list[int]:
    """Replace one chosen candidate after the other while that improves the set."""
    for _ in range(_MOST_SWEEPS):
        improved = False
        for place in range(len(chosen)):
            rest = chosen[:place] + chosen[place + 1 :]
            gains = np.maximum(worth, _best(worth, rest)).sum(axis=1)
            row = int(gains.argmax())
            if gains[row] > gains[chosen[place]] + _SMALLEST_GAIN:
                chosen = [*chosen[:place], row, *chosen[place + 1 :]]
                improved = True
        if not improved:
            break
    return chosen


def portfolio_of(demands: Demands, chosen: Sequence[int]) -> Portfolio:
    """Evaluate a chosen set."""
    losses = demands.losses(chosen)
    served = losses[np.isfinite(losses) & demands.can_be_served]
    return Portfolio(
        tuple(chosen),
        demands.mean_accuracy(chosen),
        int((demands.served_by(chosen) >= 0).sum()),
        float(served.max(initial=0.0)),
    )
