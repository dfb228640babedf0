"""What the sentinel makes of its readings."""

from __future__ import annotations

import numpy as np

from agent.child_messages import SentinelReading
from agent.sentinel import SLOW_RATIO, STEADY_COUNT, Sentinel, Verdict


def reading(median_ms: float, half_width_percent: float = 1.0) -> SentinelReading:
    return SentinelReading(median_ms=median_ms, half_width_percent=half_width_percent)


def judge(sentinel: Sentinel, *readings_ms: float, half_width_percent: float = 1.0) -> list[Verdict]:
    return [sentinel.judge("pi", None, reading(ms, half_width_percent), 0.0) for ms in readings_ms]


def test_an_uncertain_reading_is_not_taken_for_a_slow_device() -> None:
    sentinel = Sentinel()
    judge(sentinel, 1.0)
    assert not judge(sentinel, 1.3, half_width_percent=25.0)[0].slow
    assert judge(sentinel, 1.3, half_width_percent=2.0)[0].slow


def test_a_device_whose_fastest_sample_is_slow_is_slow_however_uncertain_the_reading() -> None:
    sentinel = Sentinel()
    judge(sentinel, 1.0)
    beside_a_neighbour = SentinelReading(median_ms=2.1, half_width_percent=110.0, min_ms=1.7)
    assert sentinel.judge("pi", None, beside_a_neighbour, 0.0).slow


def test_noise_of_every_core_alone_never_tags_a_device() -> None:
    rng = np.random.default_rng(0)
    sentinel = Sentinel()
    noisy = 2.0 * np.exp(0.12 * rng.standard_normal(200))
    assert not any(verdict.slow for verdict in judge(sentinel, *noisy, half_width_percent=35.0))


def test_a_lucky_uncertain_reading_does_not_become_the_reference() -> None:
    sentinel = Sentinel()
    judge(sentinel, 1.0)
    judge(sentinel, 0.8, half_width_percent=30.0)
    assert not any(verdict.slow for verdict in judge(sentinel, 1.0, 1.0, 1.0))


def test_a_faster_device_sets_a_new_reference() -> None:
    sentinel = Sentinel()
    judge(sentinel, 1.5, 1.0)
    verdicts = judge(sentinel, 1.0, 1.0, 1.5)  # the reading before the first of them was 1.0
    assert [verdict.slow for verdict in verdicts] == [False, False, True]


def test_a_device_that_settles_at_a_lower_speed_counts_again() -> None:
    sentinel = Sentinel()
    judge(sentinel, 1.0, 1.0)
    verdicts = judge(sentinel, *[1.4] * (STEADY_COUNT + 3))
    assert [verdict.slow for verdict in verdicts] == [True] * (STEADY_COUNT - 1) + [False] * 4
    assert [verdict.drift for verdict in verdicts[-3:]] == [1.0] * 3
    # Back at full speed, the old reference is found again.
    assert not judge(sentinel, 1.0, 1.0)[1].slow
    assert judge(sentinel, 1.4)[0].slow


def test_a_device_that_goes_on_heating_up_has_no_lasting_speed() -> None:
    sentinel = Sentinel()
    judge(sentinel, 1.0)
    rising = 1.0 * SLOW_RATIO * 1.03 ** np.arange(1, 4 * STEADY_COUNT)
    assert all(verdict.slow for verdict in judge(sentinel, *rising))
