"""Percentiles of run times, and the intervals that hold for every distribution."""

from __future__ import annotations

import math

import numpy as np
import pytest
from pydantic import ValidationError
from rigs.synthetic_times import KINDS, SyntheticTimes, coverage_of

from fleetnas.fleet_protocol.messages import PercentileTime
from fleetnas.fleet_protocol.percentiles import (
    CONFIDENCE,
    interval_ranks,
    percentile_times,
    planned_percentile,
    pooled_times,
    runs_needed,
)


@pytest.mark.parametrize("percentile", [50.0, 90.0, 95.0, 99.0])
def test_intervals_cover_the_true_percentile_as_often_as_they_say(percentile: float) -> None:
    found = coverage_of(percentile, 600, seed=11)
    assert 93.0 <= found.covered <= 97.5
    assert found.above < 5.0


@pytest.mark.parametrize("runs", [7, 60, 133, 400])
@pytest.mark.parametrize("percentile", [50.0, 75.0, 95.0])
def test_ranks_are_those_of_the_binomial(runs: int, percentile: float) -> None:
    share = percentile / 100.0
    at_most = np.cumsum([math.comb(runs, k) * share**k * (1 - share) ** (runs - k) for k in range(runs + 1)])
    possible = {
        (high - low, float(at_most[high - 1] - at_most[low - 1]))
        for low in range(1, runs)
        for high in range(low + 1, runs + 1)
        if at_most[high - 1] - at_most[low - 1] >= CONFIDENCE
    }
    ranks = interval_ranks(runs, percentile)
    if not possible:
        assert ranks is None
        return
    assert ranks is not None
    width = min(width for width, _ in possible)
    assert ranks.high - ranks.low == width
    assert ranks.coverage == pytest.approx(min(c for w, c in possible if w == width), abs=1e-9)


@pytest.mark.parametrize(("percentile", "fewest"), [(95.0, 59), (99.0, 299), (99.9, 2995)])
def test_fewer_runs_than_any_interval_takes_have_none(percentile: float, fewest: int) -> None:
    assert interval_ranks(fewest, percentile) is not None
    assert interval_ranks(fewest - 1, percentile) is None
    (found,) = percentile_times(np.linspace(1.0, 2.0, fewest - 1).tolist(), [percentile])
    assert (found.low_ms, found.high_ms) == (None, None)


@pytest.mark.parametrize("percentile", [50.0, 90.0, 95.0, 97.5, 99.0, 99.9])
def test_a_decision_takes_runs_enough_for_an_interval(percentile: float) -> None:
    runs = runs_needed(percentile)
    ranks = interval_ranks(runs, percentile)
    assert ranks is not None
    assert ranks.high < runs  # one slow run alone does not decide
    assert percentile < planned_percentile(percentile) < 100.0


@pytest.mark.parametrize("kind", KINDS)
def test_values_of_many_runs_are_near_the_truth(kind: str) -> None:
    rng = np.random.default_rng(3)
    times = SyntheticTimes(kind, 20.0, 0.05, 0.02, 1.4)
    (found,) = percentile_times(times.draw(200_000, rng).tolist(), [95.0])
    assert found.value_ms == pytest.approx(times.true_percentile_ms(95.0), rel=0.005)


def test_sessions_are_pooled_with_equal_weight() -> None:
    pooled = pooled_times([[1.0] * 30, [2.0] * 10, [3.0] * 20])
    assert [pooled.count(value) for value in (1.0, 2.0, 3.0)] == [10, 10, 10]
    assert pooled_times([[1.0, 2.0]]) == (1.0, 2.0)
    assert pooled_times([[1.0], []]) == ()


def test_a_percentile_outside_its_interval_is_refused() -> None:
    with pytest.raises(ValidationError, match="within its interval"):
        PercentileTime(percentile=95.0, value_ms=3.0, low_ms=1.0, high_ms=2.0, runs=300)
