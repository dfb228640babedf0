"""The warm-up on synthetic clocks: it ends when the latency no longer falls."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from fleetnas.agent.runtimes.warm_up import WarmUp, warm_up
from fleetnas.fleet_protocol.messages import MeasurementProtocol

#: Latency of an inference, in ms, by its number and the time before it, in s.
Course = Callable[[int, float], float]


def warmed(course: Course, **fields: float) -> WarmUp:
    now_ns, numbers = 0, itertools.count()

    def run() -> None:
        nonlocal now_ns
        now_ns += round(1e6 * course(next(numbers), now_ns / 1e9))

    return warm_up(run, MeasurementProtocol.model_validate(fields), lambda: now_ns)


def noise(seed: int, amount: float) -> Iterator[float]:
    rng = np.random.default_rng(seed)
    return (1 + amount * float(rng.exponential()) for _ in itertools.count())


@pytest.mark.parametrize(("latency_ms", "most_runs", "most_s"), [(0.05, 1000, 0.05), (5, 8, 0.05), (25, 4, 0.1)])
def test_a_device_that_is_steady_at_once_takes_a_few_runs(latency_ms: float, most_runs: int, most_s: float) -> None:
    found = warmed(lambda number, at_s: latency_ms)
    assert found.steady
    assert found.runs <= most_runs
    assert found.spent_ns / 1e9 <= most_s + 1e-9
    assert found.inference_ns == pytest.approx(1e6 * latency_ms)


@pytest.mark.parametrize("amount", [0.01, 0.03, 0.1])
def test_noise_does_not_keep_a_steady_device_warming_up(amount: float) -> None:
    spent_s = []
    for seed in range(40):
        factors = noise(seed, amount)
        spent_s.append(warmed(lambda number, at_s, factors=factors: 5 * next(factors)).spent_ns / 1e9)
    assert np.mean(spent_s) < 0.1
    assert max(spent_s) < 0.3


@pytest.mark.parametrize("first", [1, 2, 3])
def test_first_inferences_that_are_slower_are_not_among_the_last(first: int) -> None:
    found = warmed(lambda number, at_s: 12.0 if number < first else 4.0)
    assert found.steady
    assert found.runs >= first + 6
    assert found.inference_ns == pytest.approx(4e6)


def test_latency_that_falls_by_steps_is_followed_to_the_last_step() -> None:
    found = warmed(lambda number, at_s: max(4.0, 20.0 - 4 * (number // 2)))
    assert found.runs >= 8 + 6
    assert found.inference_ns == pytest.approx(4e6)


@pytest.mark.parametrize("ramp_s", [0.05, 0.15, 0.3])
@pytest.mark.parametrize("gain", [0.2, 0.5])
def test_a_clock_that_rises_is_followed_to_its_highest(ramp_s: float, gain: float) -> None:
    factors = noise(1, 0.002)
    found = warmed(lambda number, at_s: 4 * (1 + gain * max(0.0, 1 - at_s / ramp_s)) * next(factors))
    assert found.steady
    assert found.spent_ns / 1e9 >= 0.9 * ramp_s
    assert found.spent_ns / 1e9 <= ramp_s + 0.1


def test_a_device_that_is_never_steady_ends_at_the_longest_time() -> None:
    found = warmed(lambda number, at_s: 10 * 0.985**number)
    assert not found.steady
    assert 0.0 < found.spent_ns / 1e9 <= 0.51
    assert warmed(lambda number, at_s: 20 - 25 * at_s, warmup_s=0.4).spent_ns / 1e9 == pytest.approx(0.4, abs=0.02)


def test_slow_models_run_as_often_as_was_asked_and_no_more() -> None:
    found = warmed(lambda number, at_s: 2000.0)
    assert (found.runs, found.steady) == (3, False)
    assert warmed(lambda number, at_s: 2000.0, warmup_runs=0, warmup_s=0.0).runs == 1


def test_as_many_runs_as_were_asked_are_made_although_it_is_steady_or_over() -> None:
    assert warmed(lambda number, at_s: 5.0, warmup_runs=50).runs == 50
    assert warmed(lambda number, at_s: 5.0, warmup_runs=50, warmup_s=0.0).runs == 50
