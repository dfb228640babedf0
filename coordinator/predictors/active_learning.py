"""Active learning: greedy I-optimal design for a Gaussian posterior."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fleetnas.coordinator.predictors.prior import Floats

#: Candidates drawn at random for each choice.
CANDIDATES_PER_CHOICE = 50


def i_optimal(
    mean: Floats,
    variance: Floats,
    joint: Floats,
    count: int,
    rng: np.random.Generator,
    targets_ms: Floats | None = None,
) -> NDArray[np.intp]:
    """Positions of the `count` candidates whose measurement lowers the mean relative variance most, best first.

    Each choice is the best one given those before it (active learning of Cohn, 1996), among a few random ones: the
    best of all are corners of the space, where a linear model has its largest error.

    Args:
        mean: predicted latency of each candidate, ms, (n,).
        variance: of a measurement of each, ms^2, (n,).
        joint: posterior covariance of the candidates' latencies, ms^2, (n, n).
        count: number of choices, at most n.
        rng: draws the candidates that each choice is made from.
        targets_ms: candidates near one of these count more, and are offered more often.
    """
    own = np.diagonal(joint).copy()
    noise = np.maximum(variance - own, 1e-12)
    importance = np.maximum(mean, 1e-9) ** -2.0
    offer = np.ones(len(mean))
    if targets_ms is not None:
        offer = _nearness(mean, variance, targets_ms)
        importance = importance * offer
    picks: list[int] = []
    # What the choices take away from the covariance, as factors: the whole matrix is never touched again.
    factors = np.zeros((count, len(mean)))
    free = np.ones(len(mean), dtype=np.bool_)
    for number in range(count):
        left = np.flatnonzero(free)
        offered = rng.choice(
            left, min(CANDIDATES_PER_CHOICE, len(left)), replace=False, p=offer[left] / offer[left].sum()
        )
        rows = joint[offered] - factors[:number, offered].T @ factors[:number]
        place = int(np.argmax(rows**2 @ importance / (own[offered] + noise[offered])))
        best = int(offered[place])
        picks.append(best)
        free[best] = False
        factors[number] = rows[place] / np.sqrt(max(rows[place, best], 0.0) + noise[best])
        own -= factors[number] ** 2
    return np.array(picks, dtype=np.intp)


def _nearness(latency: Floats, variance: Floats, targets_ms: Floats) -> Floats:
    """Importance of each architecture for the targets, (n,): 1 at a target, less away from it, at least 0.02."""
    width = variance + (0.05 * targets_ms[:, None]) ** 2
    found: Floats = 0.02 + np.exp(-0.5 * (latency - targets_ms[:, None]) ** 2 / width).max(axis=0)
    return found
