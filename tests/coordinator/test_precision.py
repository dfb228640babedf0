"""Precision of measurements: what each task asks for, and how noise and scatter between sessions are understood."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rigs.simulated_fleet import SPACE, Simulation, measurement

from fleetnas.coordinator.records.plan import CampaignPlan
from fleetnas.coordinator.records.precision import AskedPrecision, PrecisionChoice, protocol_for
from fleetnas.coordinator.tuning.needed_precision import COARSEST_PERCENT, FINEST_PERCENT, VERIFICATION, precision_of
from fleetnas.coordinator.tuning.observations import Observations
from fleetnas.coordinator.tuning.session_noise import DEFAULT_SCATTER
from fleetnas.fleet_protocol.messages import Measurement, MeasurementProtocol
from fleetnas.fleet_protocol.orders import MeasureTask
from fleetnas.fleet_protocol.student_t import Z95

GENOMES = SPACE.sample(12, np.random.default_rng(4))
PROTOCOL = MeasurementProtocol(min_s=0.4, min_runs=40)

protocols = st.builds(
    MeasurementProtocol,
    min_runs=st.integers(3, 1000),
    min_s=st.floats(0, 10),
    max_s=st.floats(10, 100),
    warmup_s=st.floats(0, 5),
    half_width_percent=st.floats(0.1, 20),
    sessions=st.integers(1, 5),
)
asked = st.builds(AskedPrecision, half_width_percent=st.floats(0.1, 20), sessions=st.integers(1, 5))


class TestProtocol:
    @given(protocols, asked)
    def test_a_coarser_measurement_never_takes_longer_and_a_finer_one_never_less(
        self, base: MeasurementProtocol, precision: AskedPrecision
    ) -> None:
        found = protocol_for(base, precision)
        assert found == MeasurementProtocol.model_validate(found.model_dump())
        assert found.half_width_percent == precision.half_width_percent
        times = ("min_s", "min_runs", "warmup_s", "max_s")
        if precision.half_width_percent <= base.half_width_percent:
            assert all(getattr(found, name) == getattr(base, name) for name in times)
            assert found.sessions >= base.sessions
        assert all(getattr(found, name) <= getattr(base, name) for name in times)
        assert found.max_s >= found.min_s
        assert found.min_s >= min(base.min_s, 0.12), "shorter turns of references would read another level"

    def test_without_a_precision_the_protocol_is_that_of_the_run(self) -> None:
        assert protocol_for(PROTOCOL, None) == PROTOCOL


class TestNeededPrecision:
    def test_a_subnet_of_which_nothing_is_known_is_measured_coarsely(self) -> None:
        assert precision_of(None, None) == AskedPrecision(COARSEST_PERCENT)
        assert precision_of(10.0, 5.0) == AskedPrecision(COARSEST_PERCENT)

    @given(st.floats(0.01, 1e4), st.floats(0.0, 1.0), st.floats(0.0, 1.0))
    def test_the_less_is_known_the_coarser(self, latency_ms: float, one: float, other: float) -> None:
        less, more = sorted((one, other))
        coarse, fine = (precision_of(latency_ms, share * latency_ms).half_width_percent for share in (more, less))
        assert FINEST_PERCENT <= fine <= coarse <= COARSEST_PERCENT


def orders_of(precision: PrecisionChoice, *, stop_after: int | None = None) -> tuple[Simulation, list[MeasureTask]]:
    """Run a campaign on one device, to its end or until that many orders were sent, and note the orders."""
    plan = CampaignPlan(targets="auto:2", budget=10, initial_design=6, protocol=PROTOCOL, precision=precision)
    fleet, orders = Simulation(plan), list[MeasureTask]()
    agent = fleet.add("pi", seed=1)
    agent.fails = lambda task: orders.append(task)  # type: ignore[assignment, func-returns-value, return-value]
    fleet.begin()
    fleet.run(until=lambda: len(orders) == stop_after)
    return fleet, orders


class TestTasks:
    def test_targets_are_judged_by_fine_measurements_of_several_sessions_alone(self) -> None:
        _, orders = orders_of("auto")
        judged = [order.protocol for order in orders if order.calibration is not None]
        others = [order.protocol for order in orders if order.calibration is None]
        assert len(judged) >= 2
        for protocol in judged:
            assert protocol.sessions >= 3
            assert protocol.half_width_percent == VERIFICATION.half_width_percent < PROTOCOL.half_width_percent
            assert (protocol.min_s, protocol.min_runs) == (PROTOCOL.min_s, PROTOCOL.min_runs)
        assert len(others) >= 6
        assert {protocol.sessions for protocol in others} == {1}
        assert all(FINEST_PERCENT <= protocol.half_width_percent <= COARSEST_PERCENT for protocol in others)
        assert others[0].half_width_percent == COARSEST_PERCENT
        assert others[0].min_s < PROTOCOL.min_s / 2

    def test_a_fixed_precision_is_the_same_for_every_task(self) -> None:
        _, orders = orders_of("fixed")
        assert {order.protocol for order in orders} == {PROTOCOL}

    def test_a_resumed_run_sends_the_protocols_of_the_run_that_was_killed(self) -> None:
        _, whole = orders_of("auto")
        fleet, orders = orders_of("auto", stop_after=8)
        fleet.vanish()
        fleet.begin(resume=True)
        fleet.run()
        sent = {order.task.task_id: order.protocol for order in orders}
        assert sent == {order.task.task_id: order.protocol for order in whole}
        stored = {task.task_id: task.asked_precision for task in fleet.store.tasks("run-1")}
        assert all(protocol_for(PROTOCOL, stored[task_id]) == protocol for task_id, protocol in sent.items())


def repeats(scatter: float, *, subnets: int, runs: int, seed: int) -> list[tuple[int, Measurement]]:
    """Steady measurements of one session each, which differ from session to session."""
    rng = np.random.default_rng(seed)
    return [
        (subnet, measurement(float((1 + subnet) * np.exp(rng.normal(0, scatter))), half_width_percent=0.2))
        for subnet in range(subnets)
        for _ in range(runs)
    ]


def of_sessions(*medians_ms: float, half_width_percent: float = 0.5) -> Measurement:
    return measurement(
        float(np.mean(medians_ms)),
        sessions=len(medians_ms),
        session_medians_ms=medians_ms,
        half_width_percent=half_width_percent,
    )


def observed(found: list[tuple[int, Measurement]]) -> Observations:
    observations = Observations()
    for subnet, taken in found:
        observations.add(GENOMES[subnet], taken)
    return observations


class TestSessionScatter:
    def test_without_repeats_it_is_the_default(self) -> None:
        assert observed(repeats(0.05, subnets=8, runs=1, seed=0)).session_scatter == pytest.approx(DEFAULT_SCATTER)

    @pytest.mark.parametrize("scatter", [0.005, 0.015, 0.03])
    def test_it_is_learned_from_subnets_that_were_measured_again(self, scatter: float) -> None:
        found = [observed(repeats(scatter, subnets=12, runs=4, seed=seed)).session_scatter for seed in range(8)]
        assert np.mean(found) == pytest.approx(scatter, rel=0.25, abs=0.003)

    def test_sessions_that_agree_lower_it_and_those_that_differ_raise_it(self) -> None:
        steady = observed([(subnet, of_sessions(1.0, 1.001, 0.999)) for subnet in range(6)])
        unsteady = observed([(n, of_sessions(1.0, 1.04, 0.96, half_width_percent=4.5)) for n in range(6)])
        assert steady.session_scatter < DEFAULT_SCATTER < unsteady.session_scatter

    def test_a_device_that_wanders_between_sessions_is_not_taken_for_scatter(self) -> None:
        # The medians as they ran differ by a third; the latency at undisturbed speed does not.
        wandering = observed([(subnet, of_sessions(1.0, 1.3, 0.9)) for subnet in range(6)])
        assert wandering.session_scatter < DEFAULT_SCATTER

    @given(st.lists(st.tuples(st.integers(0, 3), st.floats(0.5, 2.0), st.integers(1, 3)), max_size=12), st.randoms())
    @settings(deadline=None)
    def test_the_order_of_arrival_changes_nothing(self, found: list[tuple[int, float, int]], random: object) -> None:
        taken = [(subnet, of_sessions(*(ms * (1 + 0.01 * n) for n in range(count)))) for subnet, ms, count in found]
        shuffled = list(taken)
        random.shuffle(shuffled)  # type: ignore[attr-defined]
        one, other = observed(taken), observed(shuffled)
        assert one.training_set() == other.training_set()
        assert (one.noise, one.session_scatter) == (other.noise, other.session_scatter)


class TestNoise:
    def test_the_predictor_is_told_the_noise_of_each_measurement(self) -> None:
        widths = (0.5, 3.0, 6.0)
        found = observed([(n, measurement(2.0, half_width_percent=width)) for n, width in enumerate(widths)])
        by_genome = {genome: noise / ms for genome, ms, noise in found.training_set()}
        noises = [by_genome[tuple(genome.tolist())] for genome in GENOMES[:3]]
        assert all(one < other for one, other in pairwise(noises))
        expected = [math.hypot(width / 100.0 / Z95, DEFAULT_SCATTER) for width in widths]
        assert noises == pytest.approx(expected)

    def test_three_sessions_say_more_than_a_single_one_of_the_same_half_width(self) -> None:
        found = observed([(0, of_sessions(1.0, 1.0, 1.0)), (1, of_sessions(1.0))])
        several, single = (noise / ms for _, ms, noise in sorted(found.training_set(), key=lambda row: row[2] / row[1]))
        assert several < 0.7 * single

    def test_sessions_that_agree_by_chance_are_not_taken_to_be_exact(self) -> None:
        ((_, ms, noise),) = observed([(0, of_sessions(1.0, 1.0, 1.0, half_width_percent=0.0))]).training_set()
        assert noise / ms > 0.004

    def test_coarse_measurements_of_the_initial_design_do_not_widen_the_margins(self) -> None:
        coarse = [(n, measurement(1.0 + n, half_width_percent=6.0)) for n in range(8)]
        fine = [(n, measurement(1.0 + n, half_width_percent=2.0)) for n in range(8, 12)]
        assert observed(coarse + fine).noise == pytest.approx(observed(fine).noise, rel=1e-6)
        assert observed(coarse).noise > 1.5 * observed(fine).noise
