"""What the speed tracker makes of the references' readings."""

from __future__ import annotations

import numpy as np
import pytest

from fleetnas.agent.measuring.levels import continued_levels
from fleetnas.agent.measuring.messages import PairedTiming
from fleetnas.agent.runtimes.timing import Timing
from fleetnas.agent.service.speed_tracker import SLOW_RATIO, STEADY_APART_S, STEADY_COUNT, SpeedTracker, Verdict

SMALL, LARGE = "a" * 12, "b" * 12


def timing(slowdown: float, reference: str = LARGE, *, level_ms: float = 2.0, noisy: bool = False) -> PairedTiming:
    ran = Timing(
        median_ms=4.0 * slowdown,
        mad_ms=0.1,
        p90_ms=4.0 * slowdown,
        min_ms=4.0 * slowdown,
        runs=50,
        inner_loops=1,
        half_width_percent=1.0,
        noisy=noisy,
        times_us=(4000.0 * slowdown,),
        block_medians_ms=(4.0 * slowdown,),
        inference_s=1.0,
    )
    return PairedTiming(
        timing=ran,
        undisturbed_ms=4.0,
        undisturbed_half_width_percent=1.0,
        basis="clean",
        reference=reference,
        reference_ms=level_ms,
        slowdown=slowdown,
        fastest_slowdown=slowdown,
        slowest_slowdown=slowdown,
        rounds=8,
        clean_rounds=8,
        subject_inference_s=0.9,
        reference_inference_s=0.1,
    )


class Clock:
    """Ten seconds per measurement."""

    def __init__(self, tracker: SpeedTracker) -> None:
        self.tracker = tracker
        self.now, self.step_s = 1000.0, 10.0

    def judge(self, *slowdowns: float, reference: str = LARGE, throttled: bool | None = None) -> list[Verdict]:
        verdicts = []
        for slowdown in slowdowns:
            verdicts.append(
                self.tracker.judge(
                    "pi", timing(slowdown, reference), throttled=throttled, now=self.now, ended_unix_s=self.now
                )
            )
            self.now += self.step_s
        return verdicts


@pytest.fixture
def clock() -> Clock:
    return Clock(SpeedTracker())


def test_qualities(clock: Clock) -> None:
    assert [verdict.quality for verdict in clock.judge(1.0, 1.3, 1.0)] == ["ok", "slowed", "ok"]
    assert clock.judge(1.0, throttled=True)[0].quality == "slowed"
    noisy = clock.tracker.judge("pi", timing(1.0, noisy=True), throttled=None, now=clock.now, ended_unix_s=clock.now)
    assert noisy.quality == "noisy"


def test_a_device_that_stays_slow_has_a_new_regime_and_is_not_given_up(clock: Clock) -> None:
    clock.judge(1.0, 1.0)
    began = clock.now
    verdicts = clock.judge(*[1.8] * (STEADY_COUNT + 2))
    assert [verdict.quality for verdict in verdicts] == ["slowed"] * (STEADY_COUNT - 1) + ["ok"] * 3
    assert [verdict.new_regime for verdict in verdicts] == [False] * (STEADY_COUNT - 1) + [True, False, False]
    assert [verdict.regime_unix_s for verdict in verdicts] == [1000.0] * (STEADY_COUNT - 1) + [began] * 3
    assert verdicts[-1].regime_slowdown == pytest.approx(1.8)
    assert clock.tracker.normals("pi") == {LARGE: pytest.approx(1.8)}
    assert clock.tracker.levels("pi") == {LARGE: 2.0}, "the scale stays"
    # Slower still than the regime is slow; back at full speed, after as many readings, is a regime too.
    assert clock.judge(2.1)[0].quality == "slowed"
    verdicts = clock.judge(*[1.0] * STEADY_COUNT)
    assert {verdict.quality for verdict in verdicts} == {"ok"}
    assert [verdict.new_regime for verdict in verdicts] == [False] * (STEADY_COUNT - 1) + [True]
    assert verdicts[-1].regime_slowdown == pytest.approx(1.0)


def test_references_share_a_regime_that_slows_them_alike(clock: Clock) -> None:
    clock.judge(1.0)
    clock.judge(1.0, reference=SMALL)
    for _ in range(STEADY_COUNT // 2):
        clock.judge(1.5)
        clock.judge(1.55, reference=SMALL)
    assert clock.tracker.normals("pi") == {LARGE: pytest.approx(1.5), SMALL: pytest.approx(1.55)}


def test_contention_that_leaves_the_smallest_alone_is_a_regime_of_the_others(clock: Clock) -> None:
    for _ in range(STEADY_COUNT):
        clock.judge(1.4)
        clock.judge(1.0, reference=SMALL)
    assert clock.tracker.normals("pi") == {LARGE: pytest.approx(1.4), SMALL: pytest.approx(1.0)}


def test_a_device_that_goes_on_heating_up_has_no_lasting_speed(clock: Clock) -> None:
    clock.judge(1.0)
    rising = SLOW_RATIO * 1.03 ** np.arange(1, 4 * STEADY_COUNT)
    assert not any(verdict.new_regime for verdict in clock.judge(*rising))


def test_bursts_are_no_regime(clock: Clock) -> None:
    rng = np.random.default_rng(0)
    verdicts = clock.judge(*np.where(rng.random(300) < 0.3, 3.0, 1.0))
    assert not any(verdict.new_regime for verdict in verdicts)
    assert clock.tracker.normals("pi")[LARGE] <= 1.1


def test_ordinary_noise_is_neither_slow_nor_a_regime(clock: Clock) -> None:
    rng = np.random.default_rng(1)
    verdicts = clock.judge(*np.exp(0.03 * rng.standard_normal(300)))
    assert {verdict.quality for verdict in verdicts} == {"ok"}
    assert not any(verdict.new_regime for verdict in verdicts)


def test_what_is_normal_follows_the_readings_within_bounds(clock: Clock) -> None:
    clock.judge(*[1.08] * 4)
    assert clock.tracker.normals("pi") == {LARGE: pytest.approx(1.08)}
    assert clock.judge(1.12)[0].quality == "slowed", "but slow stays what is slower than the regime"


def test_a_lowered_level_begins_a_new_history(clock: Clock) -> None:
    clock.judge(*[1.5] * (STEADY_COUNT - 1))
    verdict = clock.tracker.judge(
        "pi", timing(1.0, level_ms=1.2), throttled=None, now=clock.now, ended_unix_s=clock.now
    )
    assert (verdict.quality, verdict.new_regime) == ("ok", False)
    assert clock.tracker.levels("pi") == {LARGE: 1.2}


def test_settings_are_told_apart(clock: Clock) -> None:
    clock.judge(1.0)
    assert clock.tracker.levels("another") == {}


def test_new_sessions_continue_the_old_scale() -> None:
    old = {"a": 1.0, "b": 2.0, "c": 4.0}
    # Each session by a factor of its own, and a device that is 1.5 times slower now.
    read = {"a": 1.5 * 1.04, "b": 1.5 * 2.0, "c": 1.5 * 4.0 * 0.93, "d": 1.5 * 8.0}
    assert continued_levels(read, old) == pytest.approx({"a": 1.04, "b": 2.0, "c": 3.72, "d": 8.0})
    # A device that is much faster now: the old levels were read on a slowed one.
    assert continued_levels({"a": 0.6, "b": 1.2}, old) == {"a": 0.6, "b": 1.2}
    assert continued_levels({"e": 3.0}, old) == {"e": 3.0}


def test_coarse_measurements_in_a_row_are_no_lasting_speed_until_some_time_has_passed(clock: Clock) -> None:
    clock.judge(1.0, 1.0)
    clock.step_s = STEADY_APART_S / 5
    verdicts = clock.judge(*[1.8] * 40)
    (began,) = (number for number, verdict in enumerate(verdicts) if verdict.new_regime)
    assert 5 * (STEADY_COUNT - 1) <= began <= 5 * STEADY_COUNT
    assert verdicts[began].regime_slowdown == 1.8
