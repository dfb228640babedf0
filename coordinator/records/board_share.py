"""The share of boards that meet a target, with its confidence interval."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

#: Probability outside the interval, on either side.
_TAIL = 0.025
#: Halvings of the range of a share: to a millionth of a percent.
_STEPS = 40


@dataclass(frozen=True)
class BoardShare:
    """Boards that meet a target, of those that were asked."""

    met: int
    asked: int

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the share of all such boards, by Clopper and Pearson (Biometrika 26, 1934).

        It covers the share in at least 95 % of cases, however few boards were asked.
        """
        met, asked = self.met, self.asked
        low = _root(lambda share: _at_least(met, asked, share) - _TAIL) if met else 0.0
        high = _root(lambda share: _at_least(met + 1, asked, share) - (1.0 - _TAIL)) if met < asked else 1.0
        return low, high

    def __str__(self) -> str:
        low, high = (100.0 * end for end in self.interval)
        return f"{self.met} of {self.asked} boards of its class meet it (95 % interval {low:.0f} to {high:.0f} %)"


def _at_least(count: int, asked: int, share: float) -> float:
    """Return the probability that at least `count` of `asked` boards meet a target that a share of all boards meets."""
    if share <= 0.0 or share >= 1.0:
        return float(share >= 1.0 or count <= 0)
    ways = math.lgamma(asked + 1)
    log, log_not = math.log(share), math.log1p(-share)
    return math.fsum(
        math.exp(ways - math.lgamma(k + 1) - math.lgamma(asked - k + 1) + k * log + (asked - k) * log_not)
        for k in range(max(count, 0), asked + 1)
    )


def _root(rising: Callable[[float], float]) -> float:
    """Return where a rising function of a share crosses 0."""
    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2.0
        low, high = (low, middle) if rising(middle) > 0.0 else (middle, high)
    return (low + high) / 2.0
