"""The end of a measurement: intervals that are looked at repeatedly, on simulated rounds."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fleetnas.agent.runtimes.stopping import critical_value, is_within_reach, next_look
from fleetnas.fleet_protocol.student_t import student_t95

LEAST, MOST = 4, 80


def coverage(asked: float, factor: float = 1.0) -> tuple[float, float]:
    """Share of intervals that cover the truth at the end, and the mean number of rounds; rounds are standard normal."""
    rounds = np.random.default_rng(17).standard_normal((8000, MOST))
    sums, squares = rounds.cumsum(axis=1), (rounds**2).cumsum(axis=1)
    ended, covered, count = np.zeros(len(rounds), bool), np.zeros(len(rounds), bool), np.zeros(len(rounds))
    look = LEAST
    while not ended.all():
        last = next_look(look) > MOST
        mean = sums[:, look - 1] / look
        error = np.sqrt((squares[:, look - 1] / look - mean**2) / (look - 1))
        half_width = factor * critical_value(look) * error
        now = ~ended & ((half_width <= asked) | last)
        covered[now], count[now] = np.abs(mean[now]) <= half_width[now], look
        ended |= now
        look = next_look(look)
    return float(covered.mean()), float(count.mean())


@pytest.mark.parametrize("asked", [4.0, 2.0, 1.2, 0.8, 0.6, 0.5, 0.4, 0.3])
def test_intervals_at_the_end_cover_the_truth_whatever_precision_was_asked(asked: float) -> None:
    covered, rounds = coverage(asked)
    assert covered >= 0.945
    assert rounds <= max(LEAST + 1, 10 / asked**2), "it takes at most about twice the rounds of a known scatter"


def test_student_t_alone_would_promise_too_much() -> None:
    covered = min(coverage(asked, 1 / 1.2)[0] for asked in (0.8, 0.6, 0.5))
    assert covered < 0.925


def test_quantiles_of_students_t_fall_to_the_normal_ones() -> None:
    values = [student_t95(degrees) for degrees in range(1, 200)]
    assert values == sorted(values, reverse=True)
    assert values[0] == pytest.approx(12.706)
    assert (values[9], values[18], values[29]) == pytest.approx((2.23, 2.093, 2.042), abs=0.01)
    assert values[-1] == pytest.approx(1.972, abs=0.005)


def test_looks_are_fewer_than_rounds_and_always_go_on() -> None:
    looks = [LEAST]
    while looks[-1] < MOST:
        looks.append(next_look(looks[-1]))
    assert looks[:4] == [4, 5, 6, 8]
    assert len(looks) < 18
    assert next_look(1) == 2


def test_a_precision_is_out_of_reach_if_the_longest_time_would_not_bring_it() -> None:
    # In 16 times the time an interval becomes a quarter as wide; a projection may be half as wide again.
    assert is_within_reach(0.079, 0.02, 1.0, 16.0)
    assert is_within_reach(0.119, 0.02, 1.0, 16.0)
    assert not is_within_reach(0.121, 0.02, 1.0, 16.0)
    assert not is_within_reach(math.inf, 0.02, 1.0, 16.0)
    assert is_within_reach(0.02, 0.02, 30.0, 16.0)
