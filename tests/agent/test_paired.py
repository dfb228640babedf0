"""Paired measurement on a simulated device, whose speed changes as each test says."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleetnas.agent.measuring.messages import PairedTiming
from fleetnas.agent.measuring.paired import ROUNDS, Reference, TurnHooks, measure_paired, read_levels, reference_turn_s
from fleetnas.agent.measuring.undisturbed import Level, Round, estimate
from fleetnas.agent.runtimes.stopping import critical_value
from fleetnas.fleet_protocol.messages import MeasurementProtocol

PROTOCOL = MeasurementProtocol()
#: MACs of the rungs; a simulated inference takes 20 ns per thousand MACs, so 0.8 to 11 ms.
SMALLEST, SMALL, MIDDLE, LARGE, LARGEST = 40e6, 80e6, 150e6, 300e6, 560e6
SUBJECT = 200e6

#: The factor by which a model of a size, MACs, runs slower at a time, s.
Slowness = Callable[[float, float], float]


@dataclass
class Device:
    """A clock that inferences advance; their noise is a long tail above the true latency."""

    slowness: Slowness = lambda at_s, macs: 1.0
    noise: float = 0.02
    now_ns: int = 0
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(7))

    def model(self, macs: float) -> Callable[[], None]:
        def run() -> None:
            tail = self.noise * self.rng.exponential() if self.noise else 0.0
            self.now_ns += round(true_ms(macs) * 1e6 * self.slowness(self.now_ns / 1e9, macs) * (1 + tail))

        return run

    def clock_ns(self) -> int:
        return self.now_ns

    def reference(self, macs: float, normal: float = 1.0, times_level: float = 1.0) -> Reference:
        level_ms = true_ms(macs) * times_level
        return Reference(f"{round(macs):012x}", macs, self.model(macs), level_ms, normal)

    def measure(self, near: float = MIDDLE, far: float = SMALLEST, **fields: float) -> PairedTiming:
        normal, times_level = fields.pop("normal", 1.0), fields.pop("times_level", 1.0)
        return measure_paired(
            self.model(SUBJECT),
            SUBJECT,
            self.reference(near, normal, times_level),
            self.reference(far, normal, times_level),
            MeasurementProtocol.model_validate(fields),
            clock_ns=self.clock_ns,
        )


def true_ms(macs: float) -> float:
    return macs / 50e6


def uniform(factor: float) -> Slowness:
    return lambda at_s, macs: factor


def bursts(factor: float, period_s: float, share: float) -> Slowness:
    return lambda at_s, macs: factor if at_s % period_s < share * period_s else 1.0


def contention(at_most: float) -> Slowness:
    """Slows the largest by `at_most`, the smallest not at all, by the logarithm of the size in between."""
    return lambda at_s, macs: at_most ** (math.log(macs / SMALLEST) / math.log(LARGEST / SMALLEST))


def test_a_quiet_device_is_measured_in_the_nominal_rounds_and_time() -> None:
    device = Device()
    paired = device.measure()
    assert (paired.rounds, paired.clean_rounds, paired.basis) == (ROUNDS, ROUNDS, "clean")
    assert paired.undisturbed_ms == pytest.approx(true_ms(SUBJECT), rel=0.01)
    assert paired.slowdown == pytest.approx(1.0, abs=0.03)
    assert paired.timing.inference_s == pytest.approx(device.now_ns / 1e9, rel=1e-6)
    assert paired.timing.end == "precise"
    assert paired.reference_inference_s < 0.14 * paired.subject_inference_s


@pytest.mark.parametrize("subject_ms", [0.05, 1.0, 11.0, 25.0, 300.0])
def test_references_take_a_small_share_of_a_quiet_measurement(subject_ms: float) -> None:
    device = Device()
    macs = subject_ms * 50e6
    near, far = device.reference(0.9 * macs), device.reference(SMALLEST)
    paired = measure_paired(device.model(macs), macs, near, far, PROTOCOL, clock_ns=device.clock_ns)
    assert paired.reference_inference_s < 0.18 * paired.subject_inference_s
    assert paired.clean_rounds >= 4


@pytest.mark.parametrize("factor", [1.05, 1.3, 1.8, 3.0])
def test_a_uniform_slow_down_changes_only_the_latency_as_it_ran(factor: float) -> None:
    device = Device(uniform(factor))
    paired = device.measure()
    assert paired.undisturbed_ms == pytest.approx(true_ms(SUBJECT), rel=0.02)
    assert paired.timing.median_ms == pytest.approx(factor * true_ms(SUBJECT), rel=0.03)
    assert paired.slowdown == pytest.approx(factor, rel=0.04)
    assert paired.rounds <= ROUNDS + 1, "a device that is slow as a whole costs no extra time"


def test_bursts_are_waited_out_and_stay_in_the_latency_as_it_ran() -> None:
    disturbed = 0
    for seed in range(10):
        device = Device(bursts(3.0, 3.0, 0.5), rng=np.random.default_rng(seed), now_ns=seed * 400_000_000)
        paired = device.measure()
        assert paired.undisturbed_ms == pytest.approx(true_ms(SUBJECT), rel=0.03)
        disturbed += paired.slowest_slowdown > 2.5
    assert disturbed >= 5


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_latency_as_it_ran_is_that_of_all_inferences_slowed_ones_too(share: float) -> None:
    device = Device(bursts(3.0, 1.0, share), noise=0.0)
    ran_ms: list[float] = []
    model = device.model(SUBJECT)

    def run() -> None:
        begin = device.now_ns
        model()
        ran_ms.append((device.now_ns - begin) / 1e6)

    near, far = device.reference(MIDDLE), device.reference(SMALLEST)
    paired = measure_paired(
        run, SUBJECT, near, far, MeasurementProtocol(warmup_runs=0, warmup_s=0.0), clock_ns=device.clock_ns
    )
    timing = paired.timing
    assert (timing.min_ms, timing.p90_ms) == pytest.approx((min(ran_ms), np.quantile(ran_ms, 0.9)))
    slowed = sum(value > 2 * true_ms(SUBJECT) for value in ran_ms) / len(ran_ms)
    shown = sum(value > 2000 * true_ms(SUBJECT) for value in timing.times_us) / len(timing.times_us)
    assert shown == pytest.approx(slowed, abs=0.1)
    if abs(slowed - 0.5) > 0.05:
        assert timing.median_ms == pytest.approx(float(np.median(ran_ms)))


def test_time_slices_of_a_neighbour_do_not_reach_the_fastest_samples() -> None:
    """A neighbour on the same core runs for 4 ms of every 7: every third millisecond sample is hit."""
    device = Device()
    slices_ns, period_ns = 4_000_000, 7_000_000

    def sliced(macs: float) -> Callable[[], None]:
        def run() -> None:
            left = round(true_ms(macs) * 1e6 * (1 + device.noise * device.rng.exponential()))
            while left:
                into = device.now_ns % period_ns
                own = min(left, period_ns - slices_ns - into)
                if own <= 0:
                    device.now_ns += period_ns - into
                    continue
                device.now_ns += own
                left -= own

        return run

    subject = 15e6
    near, far = (
        Reference(name * 12, size, sliced(size), true_ms(size)) for name, size in (("a", 12.5e6), ("b", 2.5e6))
    )
    paired = measure_paired(sliced(subject), subject, near, far, PROTOCOL, clock_ns=device.clock_ns)
    assert paired.undisturbed_ms == pytest.approx(0.3, rel=0.05)
    assert paired.timing.p90_ms > 1.5 * 0.3


def test_rounds_that_only_looked_clean_are_not_believed() -> None:
    rng = np.random.default_rng(8)
    slow, fast = rounds([1.6] * 40, rng), rounds([1.0] * 6, rng)
    # By chance the reference was fast on both sides of slow turns of the subject; elsewhere the subject was fast too.
    looks_clean = [Round(each.subject_ms, fast[0].before_ms, fast[0].after_ms) for each in slow[:4]]
    sped = [Round(fast[index].subject_ms, each.before_ms, each.after_ms) for index, each in enumerate(slow[4:10])]
    found = estimate([*looks_clean, *sped, *slow[10:]], NEAR, FAR, SUBJECT)
    assert found.undisturbed_ms is None or found.undisturbed_ms == pytest.approx(4.0, rel=2 * found.half_width)


def test_contention_that_leaves_the_smallest_alone_gives_a_wide_interval_or_none() -> None:
    weak = Device(contention(1.28)).measure()
    assert weak.undisturbed_ms == pytest.approx(true_ms(SUBJECT), rel=0.03)
    assert weak.basis == "corrected"
    assert 2.0 < weak.undisturbed_half_width_percent < 15.0
    strong = Device(contention(4.0)).measure()
    assert strong.undisturbed_ms is None
    assert strong.timing.median_ms > true_ms(SUBJECT)
    assert strong.undisturbed_half_width_percent > 15.0


def test_contention_that_ends_is_waited_for_at_most_so_long() -> None:
    still = contention(4.0)
    ends = Device(lambda at_s, macs: still(at_s, macs) if at_s < 5.0 else 1.0)
    paired = ends.measure()
    assert paired.basis == "clean"
    assert paired.undisturbed_ms == pytest.approx(true_ms(SUBJECT), rel=0.03)
    assert 5.0 < ends.now_ns / 1e9 < 7.0
    forever = Device(still)
    forever.measure()
    assert forever.now_ns / 1e9 < PROTOCOL.warmup_s * 3 + 9.5


def test_a_step_within_the_measurement_does_not_mix_two_speeds() -> None:
    for at in np.linspace(0.5, 1.7, 13):
        device = Device(lambda at_s, macs, at=at: 1.5 if at_s > at else 1.0)
        paired = device.measure()
        assert paired.undisturbed_ms == pytest.approx(true_ms(SUBJECT), rel=0.03), at
        assert paired.timing.min_ms <= paired.timing.median_ms <= 1.6 * true_ms(SUBJECT)


def test_a_ramp_is_divided_out_round_by_round() -> None:
    device = Device(lambda at_s, macs: 1.2 + 0.2 * at_s)
    paired = device.measure()
    assert paired.basis == "corrected"
    assert paired.undisturbed_ms == pytest.approx(true_ms(SUBJECT), rel=0.03)


def test_in_a_slow_regime_rounds_are_clean_and_the_scale_stays() -> None:
    paired = Device(uniform(1.8)).measure(normal=1.8)
    assert (paired.basis, paired.clean_rounds) == ("clean", ROUNDS)
    assert paired.undisturbed_ms == pytest.approx(true_ms(SUBJECT), rel=0.02)
    back = Device(lambda at_s, macs: 1.8 if at_s < 1.2 else 1.0).measure(normal=1.8)
    assert back.undisturbed_ms == pytest.approx(true_ms(SUBJECT), rel=0.03)


def test_a_reference_calibrated_on_a_slowed_device_sets_its_level() -> None:
    paired = Device().measure(times_level=1.8)
    assert paired.reference_ms == pytest.approx(true_ms(MIDDLE), rel=0.02)
    assert paired.undisturbed_ms == pytest.approx(true_ms(SUBJECT), rel=0.02)
    assert paired.slowdown == pytest.approx(1.0, abs=0.05)


def test_a_level_that_is_kept_is_kept() -> None:
    device = Device()
    near = device.reference(MIDDLE, times_level=1.8)
    paired = measure_paired(
        device.model(SUBJECT), SUBJECT, near, None, PROTOCOL, clock_ns=device.clock_ns, keep_level=True
    )
    assert paired.reference_ms == near.level_ms
    assert paired.slowdown == pytest.approx(1 / 1.8, rel=0.03)


COARSE = {"half_width_percent": 6.0, "min_s": 0.1, "min_runs": 5}
FINE = {"half_width_percent": 1.0, "min_s": 0.3, "min_runs": 20}


def test_a_coarse_measurement_takes_a_quarter_of_a_second() -> None:
    device = Device()
    paired = device.measure(**COARSE)
    assert (paired.basis, paired.timing.end) == ("clean", "precise")
    assert paired.undisturbed_ms == pytest.approx(true_ms(SUBJECT), rel=0.02)
    assert device.now_ns / 1e9 - paired.timing.warmup_s < 0.2
    assert device.now_ns / 1e9 < 0.3


def test_a_precise_measurement_takes_as_long_as_the_noise_demands() -> None:
    took_s = []
    for noise in (0.005, 0.04, 0.08):
        device = Device(noise=noise)
        paired = device.measure(**FINE)
        assert paired.timing.end == "precise"
        assert paired.undisturbed_half_width_percent <= 1.0
        assert paired.undisturbed_ms == pytest.approx(true_ms(SUBJECT), rel=0.015)
        took_s.append(device.now_ns / 1e9)
    assert took_s == sorted(took_s)
    assert took_s[-1] > 3 * took_s[0]


def test_a_precision_out_of_reach_gets_as_much_time_again() -> None:
    device = Device(noise=0.5)
    paired = device.measure(min_s=0.3, max_s=2.0, half_width_percent=0.5)
    assert paired.timing.end in ("out of reach", "time over")
    assert device.now_ns / 1e9 < 0.5 + 2.3
    assert paired.timing.runs > 1.5 * 75


def test_the_longest_time_bounds_turns_as_well() -> None:
    device = Device(noise=0.1)
    paired = device.measure(min_s=0.1, min_runs=5, max_s=15.0, half_width_percent=0.51)
    assert device.now_ns / 1e9 < 0.5 + 15.5
    assert paired.rounds <= 80
    assert len(paired.timing.block_medians_ms) <= 100


def test_turns_of_a_reference_last_equally_long_whatever_precision_was_asked() -> None:
    protocols = [{}, COARSE, FINE]
    lengths = {reference_turn_s(MeasurementProtocol.model_validate(fields)) for fields in protocols}
    assert lengths == {0.015}
    assert reference_turn_s(MeasurementProtocol(min_s=0.01)) == pytest.approx(0.0015)


@dataclass
class RoughDevice(Device):
    """Noise of a busy machine: log-normal with a heavy tail, spikes, and a speed that wanders for all models alike."""

    tail: float = 0.05
    spikes: float = 0.01
    wander: float = 0.03
    #: Correlation time of the speed, s.
    time_s: float = 0.3
    _state: float = 0.0
    _at_ns: int = 0

    def model(self, macs: float) -> Callable[[], None]:
        rng = self.rng

        def run() -> None:
            kept = math.exp((self._at_ns - self.now_ns) / 1e9 / self.time_s)
            self._at_ns = self.now_ns
            self._state = kept * self._state + self.wander * math.sqrt(1 - kept**2) * float(rng.standard_normal())
            factor = math.exp(self.noise * float(rng.standard_normal()) + abs(self._state))
            if rng.random() < self.tail:
                factor *= 1 + 0.1 * float(rng.pareto(2.5))
            if rng.random() < self.spikes:
                factor *= float(rng.uniform(1.3, 3.0))
            self.now_ns += round(true_ms(macs) * 1e6 * factor)

        return run


@pytest.mark.parametrize(
    ("asked", "device"),
    [
        (COARSE, {}),
        (COARSE, {"noise": 0.04, "time_s": 0.05}),
        ({"half_width_percent": 3.0, "min_s": 0.2, "min_runs": 10}, {"wander": 0.06, "time_s": 1.0}),
        ({"half_width_percent": 2.0, "min_s": 0.2, "min_runs": 10}, {}),
    ],
    ids=["coarse", "coarse-noisy", "medium-wandering", "finer"],
)
def test_intervals_at_the_end_cover_the_truth_on_a_rough_device(
    asked: dict[str, float], device: dict[str, float]
) -> None:
    covered = told = 0
    for seed in range(40):
        rough = RoughDevice(rng=np.random.default_rng(seed), **device)  # type: ignore[arg-type]
        paired = rough.measure(**asked)
        if paired.undisturbed_ms is not None:
            told += 1
            covered += abs(paired.undisturbed_ms / true_ms(SUBJECT) - 1) <= paired.undisturbed_half_width_percent / 100
    assert told >= 38
    assert covered / told >= 0.93


def test_leaving_out_rounds_shows_the_whole_scatter_of_the_reference() -> None:
    """With a subject without noise, all scatter is that of reference turns, each of which closes and opens a round."""
    rng = np.random.default_rng(12)
    told, errors = [], []
    for _ in range(150):
        turns = [(2.0 * math.exp(0.01 * float(rng.standard_normal())),) for _ in range(13)]
        some = [Round((4.0,), before, after) for before, after in itertools.pairwise(turns)]
        found = estimate(some, NEAR, FAR, SUBJECT)
        told.append(found.scatter)
        errors.append(math.log((found.undisturbed_ms or 0.0) / 4.0))
    claimed = float(np.median(told)) / critical_value(12)
    assert claimed == pytest.approx(float(np.std(errors)), rel=0.25)


def test_a_very_slow_model_ends_at_the_protocols_longest_time() -> None:
    device = Device()
    macs = 50e6 * 3000
    near = device.reference(macs)
    paired = measure_paired(device.model(macs), macs, near, None, PROTOCOL, clock_ns=device.clock_ns)
    assert paired.rounds >= 2
    assert paired.undisturbed_ms == pytest.approx(3000, rel=0.03)
    assert device.now_ns / 1e9 < 3 * 3.1 + PROTOCOL.max_s + 12.5


def test_disturbed_short_measurements_stay_short_and_bounded() -> None:
    device = Device(contention(4.0))
    paired = device.measure(warmup_s=0.01, warmup_runs=1, min_runs=3, min_s=0.02)
    assert device.now_ns / 1e9 < 1.0
    assert len(paired.timing.block_medians_ms) <= 100


def test_turns_are_announced_around_the_subjects_inferences_only() -> None:
    device = Device(noise=0.0)
    told: list[float] = []
    subject, reference = device.model(SUBJECT), device.reference(MIDDLE)
    inside = False

    def before() -> None:
        nonlocal inside
        inside = True

    def after(fraction: float) -> None:
        nonlocal inside
        inside = False
        told.append(fraction)

    def run_reference() -> None:
        assert not inside
        reference.run()

    watched = Reference(reference.fingerprint, reference.size, run_reference, reference.level_ms)
    measure_paired(subject, SUBJECT, watched, None, PROTOCOL, clock_ns=device.clock_ns, hooks=TurnHooks(before, after))
    assert told == sorted(told)
    assert told[-1] == 1.0
    assert len(told) == ROUNDS + 1


def test_levels_are_read_together_and_longer_on_a_device_that_changes() -> None:
    def levels(slowness: Slowness) -> tuple[list[float], Device]:
        device = Device(slowness)
        sizes = (SMALLEST, SMALL, MIDDLE, LARGE, LARGEST)
        found, spent_s = read_levels(
            [(device.model(macs), true_ms(macs)) for macs in sizes], 0.015, clock_ns=device.clock_ns
        )
        assert spent_s == pytest.approx(device.now_ns / 1e9)
        return [level / true_ms(macs) for level, macs in zip(found, sizes, strict=True)], device

    quiet, device = levels(uniform(1.0))
    assert quiet == pytest.approx([1.0] * 5, rel=0.02)
    assert device.now_ns / 1e9 < 1.5
    stepping, longer = levels(lambda at_s, macs: 2.0 if at_s < 0.4 else 1.0)
    assert stepping == pytest.approx([1.0] * 5, rel=0.03)
    assert longer.now_ns > device.now_ns


def test_levels_of_slow_models_are_read_in_fewer_turns() -> None:
    device = Device()
    slow = [200 * macs for macs in (SMALLEST, SMALL, MIDDLE, LARGE, LARGEST)]
    found, _ = read_levels([(device.model(macs), true_ms(macs)) for macs in slow], 0.015, clock_ns=device.clock_ns)
    assert found == pytest.approx([true_ms(macs) for macs in slow], rel=0.05)
    assert device.now_ns / 1e9 < 5 * sum(map(true_ms, slow)) / 1000


# -- the estimate ------------------------------------------------------------------------------------------------------

NEAR, FAR = Level(2.0, MIDDLE), Level(1.0, SMALLEST)


def rounds(slowdowns: list[float], rng: np.random.Generator, far: float | None = None) -> list[Round]:
    def turn(ms: float, count: int) -> tuple[float, ...]:
        return tuple(ms * (1 + 0.02 * rng.exponential(size=count)))

    return [
        Round(
            turn(4.0 * each, 20),
            turn(NEAR.level_ms * each, 4),
            turn(NEAR.level_ms * each, 4),
            turn(FAR.level_ms * far, 4) if far else (),
        )
        for each in slowdowns
    ]


def test_the_order_of_rounds_does_not_matter() -> None:
    rng = np.random.default_rng(3)
    some = rounds([1.0, 1.0, 2.5, 1.0, 1.7, 1.0, 1.02], rng)
    first = estimate(some, NEAR, FAR, SUBJECT)
    for _ in range(5):
        shuffled = [some[index] for index in rng.permutation(len(some))]
        again = estimate(shuffled, NEAR, FAR, SUBJECT)
        assert again.undisturbed_ms == pytest.approx(first.undisturbed_ms, rel=1e-12)
        assert again.half_width == pytest.approx(first.half_width, rel=1e-9)


def test_disturbed_rounds_do_not_reach_an_estimate_that_has_clean_ones() -> None:
    rng = np.random.default_rng(4)
    clean = rounds([1.0] * 5, rng)
    alone = estimate(clean, NEAR, FAR, SUBJECT)
    beside = estimate([*rounds([3.0] * 4, rng), *clean], NEAR, FAR, SUBJECT)
    assert alone == beside


def test_few_clean_rounds_say_less() -> None:
    rng = np.random.default_rng(5)
    few = estimate([*rounds([1.0] * 2, rng), *rounds([3.0] * 6, rng, far=1.5)], NEAR, FAR, SUBJECT)
    assert few.basis == "clean"
    assert few.undisturbed_ms == pytest.approx(4.0, rel=0.05)
    many = estimate(rounds([1.0] * 6, rng), NEAR, FAR, SUBJECT)
    assert few.half_width >= 0.04 > many.half_width


def test_without_a_second_reference_a_disturbed_device_tells_nothing() -> None:
    rng = np.random.default_rng(6)
    assert estimate(rounds([2.0] * 8, rng), NEAR, None, SUBJECT).undisturbed_ms is None
    assert estimate(rounds([2.0] * 8, rng), NEAR, FAR, SUBJECT).undisturbed_ms is None


def test_one_round_tells_nothing() -> None:
    rng = np.random.default_rng(9)
    for slowdown in (1.0, 2.0):
        (only,) = rounds([slowdown], rng, far=slowdown)
        many = Round(only.subject_ms * 5, only.before_ms * 10, only.after_ms * 10, only.far_ms)
        for each in (only, many):
            found = estimate([each], NEAR, FAR, SUBJECT)
            assert (found.undisturbed_ms, found.basis) == (None, "none")


def test_a_regime_of_contention_is_corrected_by_what_is_normal_for_both() -> None:
    rng = np.random.default_rng(10)
    near, far = Level(NEAR.level_ms, NEAR.size, 1.5), Level(FAR.level_ms, FAR.size, 1.0)
    larger = 2 * MIDDLE  # it feels more of the contention than the reference
    slowdown = 1.5 ** (math.log(larger / SMALLEST) / math.log(MIDDLE / SMALLEST))
    some = [
        Round(tuple(slowdown / 1.5 * value for value in each.subject_ms), each.before_ms, each.after_ms)
        for each in rounds([1.5] * 8, rng)
    ]
    found = estimate(some, near, far, larger)
    assert found.basis == "clean"
    assert found.undisturbed_ms == pytest.approx(4.0, rel=0.03)
    assert found.half_width > 0.1
    # Levels that are a little off are no contention.
    alike = estimate(rounds([1.05] * 8, rng), Level(2.0, MIDDLE, 1.05), Level(1.0, SMALLEST, 1.0), SUBJECT)
    assert alike.undisturbed_ms == pytest.approx(4.0, rel=0.02)
    assert alike.half_width < 0.04


@given(factor=st.floats(1.0, 4.0), macs=st.floats(SMALLEST, LARGEST), seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_whatever_slows_all_alike_is_divided_out(factor: float, macs: float, seed: int) -> None:
    device = Device(uniform(factor), rng=np.random.default_rng(seed))
    near = min((SMALLEST, SMALL, MIDDLE, LARGE, LARGEST), key=lambda size: abs(math.log(size / macs)))
    far = SMALLEST if near != SMALLEST else LARGEST
    paired = measure_paired(
        device.model(macs), macs, device.reference(near), device.reference(far), PROTOCOL, clock_ns=device.clock_ns
    )
    assert paired.undisturbed_ms == pytest.approx(true_ms(macs), rel=0.03)
    assert paired.timing.median_ms >= 0.99 * factor * true_ms(macs)


def test_intervals_cover_the_truth_on_a_wandering_device() -> None:
    covered = told = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        speeds = np.exp(np.abs(0.08 * rng.standard_normal(400)).cumsum() * 0.2)
        device = Device(lambda at_s, macs, speeds=speeds: float(speeds[int(at_s * 10) % 400] % 1.5 + 1.0), rng=rng)
        paired = device.measure()
        if paired.undisturbed_ms is not None:
            told += 1
            covered += abs(paired.undisturbed_ms / true_ms(SUBJECT) - 1) <= paired.undisturbed_half_width_percent / 100
    assert told >= 50
    assert covered / told >= 0.9


def test_a_device_that_becomes_slow_takes_all_the_runs_that_were_asked_for() -> None:
    # Slow as soon as the length of the measurement is decided, which its limit follows from.
    device = Device(lambda at_s, macs: 1.0 if at_s < 0.01 else 30.0)
    found = device.measure(warmup_runs=1, warmup_s=0.0, min_runs=50, min_s=0.0, max_s=60.0)
    assert found.timing.runs >= 50
    shorter = Device(lambda at_s, macs: 1.0 if at_s < 0.01 else 30.0)
    assert 1 < shorter.measure(warmup_runs=1, warmup_s=0.0, min_runs=50, min_s=0.0, max_s=2.0).timing.runs < 50
