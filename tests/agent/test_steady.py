"""Warming up until the speed is steady, and readings before and after where another program runs the models."""

from __future__ import annotations

import math

import pytest

from fleetnas.agent.measuring.bracketed import bracketed
from fleetnas.agent.measuring.steady import LEAST_S, MOST_S, WINDOW_S, warm_until_steady
from fleetnas.agent.runtimes.timing import Timing


class Heating:
    """A device whose latency rises towards 1.4 times that of the cold one, with a time constant."""

    def __init__(self, constant_s: float, wander: float = 0.0) -> None:
        self.now = 0.0
        self._constant_s, self._wander = constant_s, wander

    def window(self) -> tuple[float, float]:
        self.now += WINDOW_S
        return 1.4 - 0.4 * math.exp(-self.now / self._constant_s) + self._wander * (round(self.now) % 2), WINDOW_S

    def warm_up(self) -> tuple[float, bool, list[float]]:
        told: list[float] = []
        spent_s, steady = warm_until_steady(self.window, lambda: self.now, told.append)
        return spent_s, steady, told


def test_a_device_is_warmed_up_until_three_windows_agree() -> None:
    device = Heating(constant_s=60.0)
    spent_s, steady, told = device.warm_up()
    assert steady
    assert spent_s == device.now
    assert 60.0 < device.now < 200.0
    assert device.window()[0] > 0.95 * 1.4
    assert told == sorted(told)


def test_a_device_that_is_steady_at_once_is_still_warmed_for_a_while() -> None:
    device = Heating(constant_s=1e-3)
    assert device.warm_up()[1]
    assert device.now == LEAST_S


def test_a_device_that_never_gets_steady_is_measured_in_the_end() -> None:
    device = Heating(constant_s=1.0, wander=0.2)
    assert not device.warm_up()[1]
    assert device.now == MOST_S


def timing(median_ms: float, half_width_percent: float = 1.0) -> Timing:
    return Timing(
        median_ms=median_ms,
        mad_ms=0.1,
        p90_ms=median_ms,
        min_ms=median_ms,
        runs=9,
        inner_loops=1,
        half_width_percent=half_width_percent,
        noisy=False,
        times_us=(1000 * median_ms,),
        block_medians_ms=(median_ms,),
        inference_s=0.5,
    )


def test_readings_that_agree_divide_the_slow_down_out() -> None:
    found = bracketed(timing(6.0), timing(1.5), timing(1.5), "a" * 12, 1.0)
    assert (found.undisturbed_ms, found.slowdown, found.basis) == (pytest.approx(4.0), 1.5, "bracketed")
    assert found.undisturbed_half_width_percent == pytest.approx(math.hypot(1.0, math.hypot(1.0, 1.0) / 2))
    assert (found.timing.inference_s, found.reference_inference_s) == (1.5, 1.0)


def test_readings_that_differ_widen_the_interval_and_then_say_nothing() -> None:
    a_little = bracketed(timing(4.0), timing(1.0), timing(1.1), "a" * 12, 1.0)
    assert a_little.undisturbed_ms == pytest.approx(4.0 / 1.05)
    assert a_little.undisturbed_half_width_percent > 4.7
    much = bracketed(timing(4.0), timing(1.0), timing(1.3), "a" * 12, 1.0)
    assert (much.undisturbed_ms, much.basis) == (None, "none")
    assert bracketed(timing(4.0, 20.0), timing(1.0), timing(1.0), "a" * 12, 1.0).undisturbed_ms is None


def test_a_level_read_on_a_slowed_device_is_lowered_unless_it_is_kept() -> None:
    lowered = bracketed(timing(2.0), timing(1.0), timing(1.0), "a" * 12, 2.0)
    assert (lowered.reference_ms, lowered.undisturbed_ms, lowered.slowdown) == (1.0, 2.0, 1.0)
    kept = bracketed(timing(2.0), timing(1.0), timing(1.0), "a" * 12, 2.0, keep_level=True)
    assert (kept.reference_ms, kept.undisturbed_ms, kept.slowdown) == (2.0, 4.0, 0.5)
