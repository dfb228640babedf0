"""Decide when a latency is known precisely enough, after several looks at the same growing set of samples.

Measuring goes on until the 95 % interval is narrow enough. Looking often makes such an interval too narrow: measuring
ends just when the scatter seems small. With Student's t after each round, intervals that should cover the truth in 95
of 100 cases cover it in 91. Two things repair that: looks are planned, each after a fifth more rounds than the one
before, and the interval is wider by `SEQUENTIAL_FACTOR`. The factor is the smallest (in steps of 0.05) with which
intervals of simulated normal rounds cover the truth in 95 % of cases, whatever the asked precision;
`tests/agent/test_stopping.py` repeats the simulation.

Only the scatter decides about the end, never the mean, so the mean is not biased (of normal samples, mean and scatter
are independent). That is why no error probability has to be spent per look, as a sequential test of a hypothesis must.
Sources: Chow and Robbins, On the asymptotic theory of fixed-width sequential confidence intervals for the mean, Annals
of Mathematical Statistics 36, 1965; Simons, On the cost of not knowing the variance when making a fixed-width
confidence interval for the mean, the same 39, 1968.
"""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

from fleetnas.fleet_protocol.student_t import student_t95

#: Why timing ended: the latency was known as precisely as was asked; that was out of reach; the longest time was over.
End: TypeAlias = Literal["precise", "out of reach", "time over"]

#: How much wider an interval is that is looked at repeatedly.
SEQUENTIAL_FACTOR = 1.2
#: The number of rounds from one look to the next, as a factor.
_LOOK_FACTOR = 1.2
#: A projected half-width may exceed the asked one by this factor: it is itself uncertain.
_REACH = 1.5
#: A precision that is out of reach is tried for this many times the least time.
_TRIED_TIMES = 2.0


def critical_value(count: int) -> float:
    """Return the half-width over the standard error, for a mean of `count` >= 2 rounds that is looked at repeatedly."""
    return SEQUENTIAL_FACTOR * student_t95(count - 1)


def next_look(count: int) -> int:
    """Return the number of rounds of the look that follows the one after `count` rounds."""
    return max(count + 1, math.ceil(_LOOK_FACTOR * count))


def end_at_look(half_width: float, asked: float, elapsed: float, least: float, most: float) -> End | None:
    """Return why measuring ends at a look; None if it goes on.

    `half_width` is the present one, `asked` the one to reach, in the same unit; `elapsed`, `least` and `most` are times
    in one unit.
    """
    if half_width <= asked:
        return "precise"
    if elapsed >= most:
        return "time over"
    tried = elapsed >= _TRIED_TIMES * least
    return "out of reach" if tried and not is_within_reach(half_width, asked, elapsed, most) else None


def is_within_reach(half_width: float, asked: float, elapsed: float, most: float) -> bool:
    """Whether the asked half-width can be expected when `most` has elapsed: it falls with the square root of time."""
    return half_width * math.sqrt(min(1.0, elapsed / most)) <= _REACH * asked
