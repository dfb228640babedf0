"""The timing protocol on synthetic clocks, and its statistics on synthetic distributions."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from itertools import chain, cycle, repeat
from math import comb

import numpy as np
import pytest

from fleetnas.agent.runtimes.timing import MAX_KEPT_TIMES, MIN_SAMPLE_MS, measure, median_half_width, summarise
from fleetnas.fleet_protocol.messages import MeasurementProtocol

MS = 1_000_000


class Device:
    """A clock that only inferences advance, by the durations given."""

    def __init__(self, durations_ns: Iterator[int]) -> None:
        self.now_ns = 0
        self.runs = 0
        self._durations = durations_ns

    def run(self) -> None:
        self.now_ns += next(self._durations)
        self.runs += 1

    def clock_ns(self) -> int:
        return self.now_ns


def measured(durations_ns: Iterator[int], **fields: float) -> tuple[Device, object]:
    device = Device(durations_ns)
    return device, measure(device.run, MeasurementProtocol.model_validate(fields), clock_ns=device.clock_ns)


def test_the_warm_up_is_not_counted_and_reported() -> None:
    device = Device(chain([90 * MS, 60 * MS, 40 * MS], repeat(10 * MS)))
    timing = measure(device.run, MeasurementProtocol(), clock_ns=device.clock_ns)
    assert timing.median_ms == timing.min_ms == timing.p90_ms == 10.0
    assert (timing.warmup_runs, timing.warmup_s) == (7, pytest.approx(0.23))
    assert timing.inference_s == pytest.approx(device.now_ns / 1e9)


def test_slow_models_get_the_runs_and_fast_ones_the_time() -> None:
    slow, _ = measured(repeat(40 * MS))
    assert slow.runs == 4 + 51  # a warm-up, then 3 blocks of 17 runs although 1 s was over before
    fast = Device(repeat(2 * MS))
    timing = measure(fast.run, MeasurementProtocol(), clock_ns=fast.clock_ns)
    assert timing.runs == 3 * 167  # 3 blocks of a third of a second
    assert timing.end == "precise"


def test_the_cap_ends_a_measurement_of_a_very_slow_model_in_every_block() -> None:
    _, timing = measured(repeat(3000 * MS))
    assert timing.runs == 3 * 3
    assert len(timing.block_medians_ms) == 3


def test_a_fast_model_is_timed_in_loops_and_reported_per_inference() -> None:
    device, timing = measured(repeat(80_000))
    assert timing.inner_loops == 13
    assert timing.inner_loops * 0.08 >= MIN_SAMPLE_MS
    assert timing.median_ms == pytest.approx(0.08)
    assert timing.times_us[0] == pytest.approx(80.0)
    assert device.runs >= timing.runs * timing.inner_loops


def test_models_of_a_millisecond_and_more_are_timed_one_by_one() -> None:
    assert measured(repeat(MS))[1].inner_loops == 1


def test_raw_times_stay_in_order_and_bounded() -> None:
    device = Device(chain(repeat(2 * MS, 300), (2 * MS + 10 * i for i in range(10_000))))
    timing = measure(
        device.run, MeasurementProtocol(warmup_runs=300, warmup_s=0, blocks=1, min_s=2.0), clock_ns=device.clock_ns
    )
    assert timing.runs > 900
    assert MAX_KEPT_TIMES / 2 <= len(timing.times_us) <= MAX_KEPT_TIMES
    assert list(timing.times_us) == sorted(timing.times_us)


def test_an_uncertain_median_is_measured_until_it_is_certain() -> None:
    rng = np.random.default_rng(5)
    wild = (round(5 * MS * (1 + 0.3 * float(rng.random()))) for _ in repeat(0))
    device, timing = measured(wild, warmup_runs=1, warmup_s=0, min_s=0.1, half_width_percent=1.5)
    assert (timing.noisy, timing.end) == (False, "precise")
    assert timing.half_width_percent <= 1.5
    assert timing.runs > 3 * 51
    assert timing.median_ms == pytest.approx(5.75, rel=0.015)
    assert timing.inference_s == pytest.approx(device.now_ns / 1e9)


def test_a_precision_out_of_reach_gets_as_much_time_again_and_the_median_is_noisy() -> None:
    _, timing = measured(cycle([5 * MS, 9 * MS]), warmup_runs=1, warmup_s=0, min_s=0.1, max_s=3)
    assert (timing.noisy, timing.end) == (True, "out of reach")
    assert 2 * 51 <= timing.runs < 3 * 51


def test_the_longest_time_ends_a_measurement_that_needs_more() -> None:
    rng = np.random.default_rng(6)
    wild = (round(5 * MS * (1 + 0.6 * float(rng.random()))) for _ in repeat(0))
    device, timing = measured(wild, warmup_runs=1, warmup_s=0, min_s=0.1, max_s=1.0, half_width_percent=4)
    assert (timing.noisy, timing.end) == (True, "time over")
    assert device.now_ns / 1e9 == pytest.approx(1.0, abs=0.05)
    assert len(timing.block_medians_ms) <= 80


def test_a_coarse_measurement_ends_after_its_least_time() -> None:
    device, timing = measured(repeat(5 * MS), min_s=0.1, min_runs=5, half_width_percent=6)
    assert timing.end == "precise"
    assert device.now_ns / 1e9 < 0.16


def test_a_speed_that_wanders_widens_the_interval() -> None:
    def widening(steps: list[float]) -> float:
        """The interval's half-width over that of independent samples."""
        rng = np.random.default_rng(7)
        durations = [round(5 * MS * step * (1 + 0.05 * float(rng.random()))) for step in steps]
        _, timing = measured(iter(durations), warmup_runs=1, warmup_s=0, min_runs=300, min_s=0, half_width_percent=50)
        ordered = sorted(durations[1 : 1 + timing.runs])
        return timing.half_width_percent / (100 * median_half_width(ordered) / float(np.median(ordered)))

    assert widening([1.0, 1.1] * 200) < 1.6
    assert widening(([1.0] * 40 + [1.02] * 40 + [1.05] * 40 + [1.1] * 40) * 3) > 3


def test_progress_is_told_between_blocks_only() -> None:
    device = Device(repeat(10 * MS))
    told: list[tuple[float, int]] = []
    measure(
        device.run,
        MeasurementProtocol(warmup_runs=1, warmup_s=0, min_runs=30, min_s=0),
        clock_ns=device.clock_ns,
        on_block=lambda fraction: told.append((round(fraction, 2), device.runs)),
    )
    assert told == [(0.0, 1), (0.33, 11), (0.67, 21), (1.0, 31)]


def test_garbage_collection_is_off_inside_and_back_on_after_an_error() -> None:
    states = []

    def run() -> None:
        states.append(gc.isenabled())
        raise RuntimeError("the model does not run")

    with pytest.raises(RuntimeError):
        measure(run, MeasurementProtocol())
    assert states == [False]
    assert gc.isenabled()


def test_statistics_of_known_samples() -> None:
    blocks = [[1 * MS, 2 * MS, 3 * MS], [4 * MS, 5 * MS, 100 * MS]]
    timing = summarise(blocks, 1, 2.0, 115 * MS)
    assert timing.median_ms == 3.5
    assert timing.mad_ms == 1.5
    assert timing.min_ms == 1.0
    assert timing.p90_ms == pytest.approx(52.5)
    assert timing.block_medians_ms == (2.0, 5.0)
    assert timing.times_us == (1000, 2000, 3000, 4000, 5000, 100_000)


@pytest.mark.parametrize("n", [6, 7, 10, 17, 51, 100, 333, 1000])
def test_the_interval_of_the_median_covers_95_percent_whatever_the_distribution(n: int) -> None:
    # The ranks that a half-width spans are found from samples whose values are their own ranks.
    width = 2 * median_half_width(list(range(n)))
    rank = round((n - 1 - width) / 2) + 1
    outside = sum(comb(n, k) for k in range(rank)) / 2**n
    assert 1 - 2 * outside >= 0.95
    narrower = sum(comb(n, k) for k in range(rank + 2)) / 2**n
    assert 1 - 2 * narrower < 0.955, "the interval is wider than it has to be"


Draw = Callable[[np.random.Generator, int], np.ndarray]


@pytest.mark.parametrize(
    ("draw", "truth"),
    [
        (lambda rng, n: rng.normal(10, 0.3, n), 10.0),
        (lambda rng, n: 8 + rng.lognormal(0, 0.8, n), 9.0),
        (lambda rng, n: np.where(rng.random(n) < 0.05, 40.0, 0) + rng.gamma(50, 0.2, n), None),
    ],
    ids=["normal", "skewed", "outliers"],
)
def test_the_half_width_is_honest_on_latency_like_samples(draw: Draw, truth: float | None) -> None:
    rng = np.random.default_rng(11)
    centre = float(np.median(draw(rng, 2_000_000))) if truth is None else truth
    covered = 0
    for _ in range(400):
        timing = summarise([[round(value * MS) for value in draw(rng, 60)]], 1, 2.0, 0)
        covered += abs(timing.median_ms - centre) <= 1.5 * timing.median_ms * timing.half_width_percent / 100
    # The interval is not symmetric about the median; 1.5 half-widths bound its longer side here.
    assert covered / 400 >= 0.95
