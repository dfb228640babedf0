"""Speeds of the equal boards of a class, relative to each other, learned from subnets that several of them measured.

The logarithm of a latency is the sum of the subnet's, the board's and the measurement's noise. The subnets' parts are
free, those of the boards have a wide normal prior, so their posterior is exact. It is computed anew from all
measurements: it is a function of their set, not of the order in which they came.

The boards' spread is at first taken from the faster half, then from all boards that are not slow: a board that is slow
for a reason of its own widens nothing. A board that is slower than that spread explains is called slow. Every other
board's part is shrunk towards the middle, as far as its own measurements are uncertain (James and Stein).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

#: Share of a class's boards that are not slow for which its winners are chosen: the slowest ones of many would decide
#: for all others.
SERVED_SHARE = 0.9
#: Standard deviation of the prior of a board's log speed: so wide that it shrinks no slow board.
_WIDE = 0.3
#: Spread between boards of one model before anything is known, the degrees of freedom that it counts for, its bounds.
_USUAL_DEVIATION, _USUAL_DEGREES = 0.03, 8.0
_LEAST_DEVIATION, _MOST_DEVIATION = 0.005, 0.1
#: A board that is faster than the middle one by more than this many usual spreads counts as so much faster.
_MOST_DEVIATIONS = 3.0
#: A board is slow where it is slower than the middle one by this many spreads, and by this, relative.
_SLOW_DEVIATIONS, _LEAST_SLOW = 2.75, 0.06
#: Standard errors of its own speed that it must be beyond that.
_SURE = 0.5
#: Rounds in which slow boards, middle and spread are found from each other.
_ROUNDS = 3


@dataclass(frozen=True)
class SeenLatency:
    """One latency of a subnet on a board, at the board's undisturbed speed."""

    subnet: bytes
    board: str
    log_ms: float
    noise: float
    """Relative standard deviation."""


@dataclass(frozen=True)
class BoardSpeed:
    """Speed of one board beside its class."""

    factor: float
    """Its latencies over those of the class's middle board."""
    error: float
    """Relative standard error of the factor."""
    slow: bool
    """Whether it is slower than boards of its class are."""


@dataclass(frozen=True)
class ClassSpeeds:
    """Speeds of all boards of a class."""

    boards: Mapping[str, BoardSpeed]
    deviation: float
    """Relative standard deviation between the boards that are not slow."""
    served: float
    """The factor below which are `SERVED_SHARE` of the boards that are not slow."""

    @classmethod
    def of(cls, boards: Iterable[str], seen: Iterable[SeenLatency]) -> ClassSpeeds:
        """Estimate the speeds of these boards."""
        names = sorted(boards)
        if not names:
            return cls({}, _USUAL_DEVIATION, 1.0)
        mean, error = _posterior(names, seen)
        # Of an even number the faster one of the two in the middle: of two boards the slow one is found.
        middle = float(np.sort(mean)[(len(mean) - 1) // 2])
        apart = mean - middle
        deviation = _deviation(apart, error, apart < 0)
        slow = _are_slow(apart, error, deviation)
        for _ in range(_ROUNDS):  # once the slow boards are known, all others tell of middle and spread
            kept = ~slow
            if len(names) > 2:
                middle = float(mean[kept & (apart >= -_MOST_DEVIATIONS * deviation)].mean())
                apart = mean - middle
            deviation = _deviation(apart, error, kept)
            slow = _are_slow(apart, error, deviation)
        shrunk = np.where(slow, apart, apart * deviation**2 / (deviation**2 + error**2))
        regular = np.sort(shrunk[~slow])
        served = regular[math.ceil(SERVED_SHARE * len(regular)) - 1] if len(regular) else 0.0
        known = np.where(slow, error, error * deviation / np.sqrt(deviation**2 + error**2))
        found = {
            name: BoardSpeed(math.exp(float(log)), float(own), bool(is_slow))
            for name, log, own, is_slow in zip(names, shrunk, known, slow, strict=True)
        }
        return cls(found, deviation, math.exp(float(served)))


class BoardSpeeds:
    """Latencies of the boards of a class, and the speeds that follow from them."""

    def __init__(self, stated_for: str | None = None) -> None:
        """State latencies at the speed of one board; None: at the one that serves `SERVED_SHARE` of the boards."""
        self._stated_for = stated_for
        self._seen: list[SeenLatency] = []
        self._boards: dict[str, None] = {}
        self._found: ClassSpeeds | None = None

    @property
    def several(self) -> bool:
        """Whether more than one board has measured."""
        return len(self._boards) > 1

    def add(self, subnet: bytes, board: str, undisturbed_ms: float | None, noise: float) -> None:
        """Add one latency, ms, with its relative standard deviation; None: its speed is not known."""
        self._found = None
        self._boards[board] = None
        if undisturbed_ms is not None:
            self._seen.append(SeenLatency(subnet, board, math.log(undisturbed_ms), noise))

    @property
    def now(self) -> ClassSpeeds:
        """Speeds by all latencies so far."""
        if self._found is None:
            # Sorted: not even rounding depends on the order of arrival.
            order = sorted(self._seen, key=lambda seen: (seen.subnet, seen.board, seen.log_ms, seen.noise))
            self._found = ClassSpeeds.of(self._boards, order)
        return self._found

    def factor(self, board: str) -> float:
        """Return a board's latencies over those at the stated speed, for which winners are chosen."""
        if not self.several:
            return 1.0
        speeds = self.now
        own, stated = speeds.boards.get(board), speeds.boards.get(self._stated_for or "")
        return (own.factor if own is not None else 1.0) / (stated.factor if stated is not None else speeds.served)

    def error(self, board: str) -> float:
        """Return the relative standard error of a board's factor."""
        own = self.now.boards.get(board) if self.several else None
        return own.error if own is not None else 0.0

    def is_slow(self, board: str) -> bool:
        """Whether a board is slower than boards of its class are."""
        own = self.now.boards.get(board) if self.several else None
        return own is not None and own.slow


def _posterior(names: list[str], seen: Iterable[SeenLatency]) -> tuple[Floats, Floats]:
    """Return mean and standard error of the boards' log speeds, (B,) each, the subnets' parts integrated out."""
    place = {name: row for row, name in enumerate(names)}
    subnets: dict[bytes, list[SeenLatency]] = {}
    for one in seen:
        subnets.setdefault(one.subnet, []).append(one)
    precision = np.eye(len(names)) / _WIDE**2
    pull = np.zeros(len(names))
    for shared in subnets.values():
        if len({one.board for one in shared}) < 2:
            continue
        rows = np.array([place[one.board] for one in shared])
        weight = np.array([one.noise**-2 for one in shared])
        logs = np.array([one.log_ms for one in shared])
        total = weight.sum()
        by_board = np.bincount(rows, weight, len(names))
        precision += np.diag(by_board) - np.outer(by_board, by_board) / total
        pull += np.bincount(rows, weight * (logs - (weight @ logs) / total), len(names))
    covariance = np.linalg.inv(precision)
    # What all boards have in common cannot be known, and does not matter: only the differences count.
    centred = covariance - covariance.mean(axis=0) - covariance.mean(axis=1)[:, None] + covariance.mean()
    mean: Floats = covariance @ pull
    return mean, np.sqrt(np.maximum(np.diag(centred), 0.0))


def _are_slow(apart: Floats, error: Floats, deviation: float) -> NDArray[np.bool_]:
    """Return which boards are slower than the spread explains, (B,)."""
    slow: NDArray[np.bool_] = apart - _SURE * error > max(_SLOW_DEVIATIONS * deviation, math.log1p(_LEAST_SLOW))
    return slow if not slow.all() else np.zeros(len(slow), dtype=np.bool_)


def _deviation(apart: Floats, error: Floats, kept: NDArray[np.bool_]) -> float:
    """Return the standard deviation between the boards `kept`, less what noise explains, pooled with the usual one."""
    squares, degrees = _USUAL_DEGREES * _USUAL_DEVIATION**2, _USUAL_DEGREES
    if len(apart) > 2 and kept.any():
        excess = apart[kept] ** 2 - error[kept] ** 2
        squares += float(excess.clip(0.0, (_MOST_DEVIATIONS * _USUAL_DEVIATION) ** 2).sum())
        degrees += float(kept.sum())
    return min(max(math.sqrt(squares / degrees), _LEAST_DEVIATION), _MOST_DEVIATION)
