"""The simulator of disturbed devices: profiles are as promised, and measuring on them finds the known truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from rigs.disturbances import HORIZON_S, PROFILES, STEP_S, Disturbance, disturbance, long_run_slowdown, sensitivity
from rigs.disturbed_device import BUILD_AND_LOAD_S, DisturbedAgent, DisturbedDevice, SimulatedBench, TrueLatency
from rigs.simulated_fleet import BUNDLE, SPACE, FakeClock, Simulation

from fleetnas.coordinator.predictors.features import FeatureMap
from fleetnas.coordinator.records.plan import CampaignPlan
from fleetnas.fleet_protocol.messages import Condition, Measurement, MeasurementProtocol, RuntimeSetting, TaskKey
from fleetnas.fleet_protocol.orders import MeasureTask

PROTOCOL = MeasurementProtocol()
SMALLEST, LARGEST = SPACE.smallest(), SPACE.largest()
MIDDLE = SPACE.sample(1, np.random.default_rng(5))
STEPS = round(HORIZON_S / STEP_S)


def constant(uniform: float, contention: float = 0.0) -> Disturbance:
    return Disturbance(np.full(STEPS, uniform), np.full(STEPS, contention))


def switching(before: float, after: float, at_s: float) -> Disturbance:
    times = np.arange(STEPS) * STEP_S
    return Disturbance(np.where(times < at_s, before, after), np.zeros(STEPS))


def make_bench(course: Disturbance, seed: int = 0) -> SimulatedBench:
    return SimulatedBench(DisturbedDevice(SPACE, seed, course, FakeClock()))


def task(genome: NDArray[np.int16], **changes: object) -> MeasureTask:
    made = MeasureTask(
        task=TaskKey(task_id="t.1", attempt=1),
        run_id="t",
        bundle=BUNDLE,
        architecture=SPACE.decode(genome)[0],
        setting=RuntimeSetting(),
        protocol=PROTOCOL,
        deadline_s=100.0,
    )
    return made.model_copy(update=changes)


class TestProfiles:
    @pytest.mark.parametrize(
        ("profile", "median"),
        [("quiet", 1.0), ("step", 1.5), ("sawtooth", 1.5), ("bursts", 1.0), ("ramp", 1.6), ("slow", 1.8)],
    )
    def test_the_long_run_median_of_a_uniform_profile(self, profile: str, median: float) -> None:
        slowdown = long_run_slowdown(profile, np.array([0.0, 0.5, 1.0]))
        assert slowdown == pytest.approx([median] * 3, rel=0.01)

    def test_contention_leaves_the_smallest_subnet_alone_and_slows_the_largest_most(self) -> None:
        shares = sensitivity(SPACE, np.concatenate([SMALLEST, MIDDLE, LARGEST]))
        assert shares[0] == 0.0
        assert 0.0 < shares[1] < 1.0
        assert shares[2] == 1.0
        assert long_run_slowdown("contention", shares) == pytest.approx(1.0 + 0.2 * shares, abs=0.02)
        for seed in range(10):
            levels = disturbance("contention", seed).contention
            assert levels.min() >= 0.0
            assert levels.max() <= 0.4
            assert np.ptp(levels) > 0.2

    def test_bursts_triple_the_latency_for_30_percent_of_the_time_in_parts(self) -> None:
        courses = [disturbance("bursts", seed).uniform for seed in range(8)]
        assert {float(level) for course in courses for level in np.unique(course)} == {1.0, 3.0}
        slow = np.stack(courses) == 3.0
        assert slow.mean() == pytest.approx(0.3, abs=0.02)
        bursts = (np.diff(slow.astype(int), axis=1) == 1).sum()
        assert slow.sum() * STEP_S / bursts == pytest.approx(4.0, rel=0.1)

    @pytest.mark.parametrize("seed", range(20))
    def test_bursts_take_their_share_of_every_campaign(self, seed: int) -> None:
        """A campaign's typical speed is then the undisturbed one, as it is in the long run."""
        first = disturbance("bursts", seed).uniform[: round(75 / STEP_S)] == 3.0
        assert 0.15 < first.mean() < 0.45

    def test_a_step_a_ramp_and_a_sawtooth_are_where_they_should_be(self) -> None:
        at = {name: disturbance(name, 3).uniform for name in ("step", "ramp", "sawtooth")}

        def level(name: str, second: float) -> float:
            return float(at[name][round(second / STEP_S)])

        assert (level("step", 59), level("step", 61)) == (1.0, 1.5)
        assert [level("ramp", second) for second in (0, 30, 60, 600)] == pytest.approx([1.0, 1.3, 1.6, 1.6])
        assert level("sawtooth", 13) == pytest.approx(level("sawtooth", 53))
        assert at["sawtooth"].min() == pytest.approx(1.0, abs=0.01)
        assert at["sawtooth"].max() == pytest.approx(2.0, abs=0.01)

    def test_a_mixture_has_bursts_a_lasting_slow_down_and_contention(self) -> None:
        course = disturbance("mixture", 0)
        late = course.uniform[round(100 / STEP_S) :]
        assert set(np.round(np.unique(late), 6)) == {1.3, 2.6}
        assert course.contention.max() > 0.2
        smallest, largest = long_run_slowdown("mixture", np.array([0.0, 1.0]))
        assert smallest == pytest.approx(1.3, rel=0.01)
        assert largest > 1.1 * smallest

    @pytest.mark.parametrize("profile", PROFILES)
    def test_a_seed_gives_one_course(self, profile: str) -> None:
        first, again = disturbance(profile, 4), disturbance(profile, 4)
        assert np.array_equal(first.uniform, again.uniform)
        assert np.array_equal(first.contention, again.contention)

    def test_seeds_differ_where_there_is_chance(self) -> None:
        for profile in ("sawtooth", "bursts", "mixture"):
            assert not np.array_equal(disturbance(profile, 0).uniform, disturbance(profile, 1).uniform)

    def test_the_typical_slow_down_is_the_median_over_the_time_asked_for(self) -> None:
        course, shares = switching(1.0, 2.0, at_s=100.0), np.array([0.0, 1.0])
        assert course.typical(shares, 0.0, 150.0) == pytest.approx([1.0, 1.0])
        assert course.typical(shares, 0.0, 250.0) == pytest.approx([2.0, 2.0])
        assert constant(1.5, 0.4).typical(shares, 0.0, 10.0) == pytest.approx([1.5, 2.1])


class TestDevice:
    def test_latency_is_nearly_linear_and_spans_a_wide_range(self) -> None:
        latency, features = TrueLatency(SPACE, 1), FeatureMap(SPACE)
        genomes = SPACE.sample(500, np.random.default_rng(0))
        linear = features.features(genomes) @ latency.weights
        discrepancy = np.abs(latency.predict(genomes) / linear - 1.0)
        assert 0.005 < discrepancy.mean() < 0.02
        assert discrepancy.max() <= 0.02 + 1e-9
        assert (latency.weights >= 0.0).all()
        smallest, largest = latency.predict(np.concatenate([SMALLEST, LARGEST]))
        assert 0.2 < smallest < 0.5
        assert largest / smallest > 10.0

    def test_an_inference_takes_the_latency_times_the_slow_down(self) -> None:
        device = DisturbedDevice(SPACE, 0, switching(1.0, 3.0, at_s=5.0), FakeClock())
        run, expected = device.session(MIDDLE[0]), device.latency.predict(MIDDLE)[0]
        for second, slowdown in ((1.0, 1.0), (6.0, 3.0)):
            device.clock.now_s = device.begin_s + second
            for _ in range(100):
                run()
            took_ms = 1000.0 * (device.clock.now_s - device.begin_s - second) / 100
            assert took_ms == pytest.approx(slowdown * expected, rel=0.02)

    def test_contention_is_felt_in_proportion(self) -> None:
        device = DisturbedDevice(SPACE, 0, constant(1.0, 0.4), FakeClock())
        assert device.slowdown(SMALLEST[0]) == pytest.approx(1.0)
        assert device.slowdown(LARGEST[0]) == pytest.approx(1.4)
        assert 1.0 < device.slowdown(MIDDLE[0]) < 1.4


class TestMeasuring:
    @pytest.mark.parametrize("course", [constant(1.0), constant(1.8)], ids=["quiet", "slow throughout"])
    def test_the_ratio_of_two_subnets_is_the_true_one(self, course: Disturbance) -> None:
        bench = make_bench(course)
        found = [bench.measure(task(genome)) for genome in (SMALLEST, MIDDLE, LARGEST)]
        assert all(one.undisturbed_ms is not None for one in found)
        measured = np.array([one.undisturbed_ms for one in found], dtype=np.float64)
        truth = bench.device.latency.predict(np.concatenate([SMALLEST, MIDDLE, LARGEST]))
        assert measured / measured[0] == pytest.approx(truth / truth[0], rel=0.04)
        assert [one.quality for one in found] == ["ok"] * 3

    def test_a_slow_down_after_the_first_measurements_is_taken_out(self) -> None:
        bench = make_bench(switching(1.0, 1.5, at_s=10.0))
        before = bench.measure(task(MIDDLE))
        bench.clock.now_s = bench.device.begin_s + 20.0
        after = bench.measure(task(MIDDLE))
        assert after.median_ms / before.median_ms == pytest.approx(1.5, rel=0.03)
        assert before.undisturbed_ms is not None
        assert after.undisturbed_ms is not None
        assert after.undisturbed_ms / before.undisturbed_ms == pytest.approx(1.0, rel=0.03)
        assert after.slowdown == pytest.approx(1.5, rel=0.05)
        assert (before.quality, after.quality) == ("ok", "slowed")

    def test_a_device_that_stays_slow_begins_a_new_regime(self) -> None:
        bench = make_bench(switching(1.0, 1.5, at_s=10.0))
        begun = {bench.measure(task(MIDDLE)).regime_unix_s}
        bench.clock.now_s = bench.device.begin_s + 20.0
        after = [bench.measure(task(SPACE.sample(1, np.random.default_rng(seed)))) for seed in range(16)]
        assert after[0].quality == "slowed"
        assert after[-1].quality == "ok"
        assert after[-1].regime_unix_s not in begun

    def test_a_task_takes_the_time_of_building_loading_and_inference(self) -> None:
        bench = make_bench(constant(1.0))
        bench.measure(task(MIDDLE))  # reads the references first
        began_s, busy_s = bench.clock.now_s, bench.busy_s
        subject_s, reference_s = bench.subject_s, bench.reference_s
        found = bench.measure(task(LARGEST))
        took_s = bench.clock.now_s - began_s
        subject_s, reference_s = bench.subject_s - subject_s, bench.reference_s - reference_s
        # A warm-up that is steady ends early.
        assert took_s >= PROTOCOL.min_s + BUILD_AND_LOAD_S
        assert bench.busy_s - busy_s == pytest.approx(took_s)
        assert subject_s + reference_s == pytest.approx(took_s - BUILD_AND_LOAD_S, rel=0.01)
        assert found.finished_unix_s == bench.clock.unix()
        assert 0.0 < reference_s < subject_s / 4

    def test_equal_seeds_measure_equally(self) -> None:
        results = [
            [make_bench(disturbance("mixture", 2), seed).measure(task(MIDDLE)) for _ in range(2)] for seed in (2, 3)
        ]
        assert results[0][0] == results[0][1]
        assert results[0][0] != results[1][0]


class TestWaiting:
    """A task may wait for its device; then it measures however slow the device is."""

    def slow_from(self, second: float, until: float = math.inf, condition: Condition = "as-is") -> SimulatedBench:
        times = np.arange(STEPS) * STEP_S
        bench = make_bench(Disturbance(np.where((times >= second) & (times < until), 2.0, 1.0), np.zeros(STEPS)))
        bench.measure(task(MIDDLE, condition=condition))
        bench.clock.now_s = bench.device.begin_s + second + 1.0
        return bench

    def test_it_waits_no_longer_than_the_device_is_slow(self) -> None:
        bench, waits = self.slow_from(20.0, until=30.0), list[None]()
        found = bench.measure(task(MIDDLE, wait_s=60.0, wait_above=1.2), lambda: waits.append(None))
        assert found.quality == "ok"
        assert bench.waited_s == pytest.approx(10.0)
        assert len(waits) == 5

    def test_it_waits_no_longer_than_it_may(self) -> None:
        bench = self.slow_from(20.0)
        found = bench.measure(task(MIDDLE, wait_s=6.0, wait_above=1.2))
        assert bench.waited_s == pytest.approx(6.0)
        assert found.quality == "slowed"

    def test_a_device_that_is_fast_enough_is_not_waited_for(self) -> None:
        bench = self.slow_from(20.0)
        bench.measure(task(MIDDLE, wait_s=60.0, wait_above=3.0))
        bench.measure(task(MIDDLE, wait_s=60.0))
        assert bench.waited_s == 0.0

    def test_cool_waits_for_full_speed(self) -> None:
        bench = self.slow_from(20.0, until=40.0, condition="cool")
        found = bench.measure(task(MIDDLE, condition="cool", wait_s=60.0))
        assert found.condition == "cool"
        assert 15.0 <= bench.waited_s <= 25.0
        assert found.slowdown == pytest.approx(1.0, rel=0.05)

    def test_sustained_warms_up_once_and_takes_the_lasting_speed_for_normal(self) -> None:
        bench = make_bench(switching(1.0, 1.5, at_s=20.0))
        found = bench.measure(task(MIDDLE, condition="sustained"))
        assert found.condition == "sustained"
        assert found.slowdown == pytest.approx(1.0, rel=0.05)
        assert found.median_ms == pytest.approx(1.5 * bench.device.latency.predict(MIDDLE)[0], rel=0.03)
        warmed_s = bench.waited_s
        assert warmed_s >= 30.0
        bench.measure(task(LARGEST, condition="sustained"))
        assert bench.waited_s == warmed_s


class TestCampaign:
    def campaign(self, profile: str, seed: int = 0) -> tuple[Simulation, SimulatedBench]:
        simulation = Simulation(CampaignPlan(targets="auto:2", budget=12, initial_design=8))
        agent = simulation.take_in(DisturbedAgent(simulation.broker, "pi0", simulation.clock, seconds_per_task=0.0))
        agent.bench = SimulatedBench(DisturbedDevice(SPACE, seed, disturbance(profile, seed), simulation.clock))
        simulation.begin()
        while not simulation.campaign.finished:
            simulation.step(0.05)
        return simulation, agent.bench

    def outcomes(self, simulation: Simulation) -> list[Measurement]:
        found = [stored.outcome for stored in simulation.store.outcomes("run-1")]
        assert all(isinstance(outcome, Measurement) for outcome in found)
        return [outcome for outcome in found if isinstance(outcome, Measurement)]

    def test_a_quiet_device_meets_its_targets_and_its_winners_really_do(self) -> None:
        simulation, bench = self.campaign("quiet")
        (setting_run,) = simulation.campaign.setting_runs.values()
        assert setting_run.status == "finished"
        for state in setting_run.search.targets:
            assert state.status == "met"
            assert state.genome is not None
            assert bench.device.latency.predict(state.genome[None])[0] <= state.target_ms

    def test_time_passes_as_measurements_take_it(self) -> None:
        simulation, bench = self.campaign("quiet")
        took_s = simulation.clock.now_s - bench.device.begin_s
        assert bench.busy_s <= took_s <= 1.1 * bench.busy_s + 5.0
        stamps = [outcome.finished_unix_s for outcome in self.outcomes(simulation)]
        assert stamps == sorted(stamps)

    def test_the_same_seed_gives_the_same_campaign(self) -> None:
        first, again = (self.outcomes(self.campaign("mixture", 1)[0]) for _ in range(2))
        assert first == again
