"""Averages over fresh runtime sessions: their intervals, their memory, and what one bad session does."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from rigs.agent_rig import final_reply, measured, next_reply, task
from rigs.supernets import random_bundle

from fleetnas.agent.measuring.messages import (
    BenchOrder,
    FailedReply,
    MeasuredReply,
    MeasureOrder,
    PairedTiming,
    PhaseReply,
    ReferenceOrder,
)
from fleetnas.agent.measuring.paired import Reference, measure_paired
from fleetnas.agent.measuring.session_averages import (
    mean_paired,
    mean_timing,
    run_sessions,
    typical_load_ms,
)
from fleetnas.agent.measuring.session_share import session_share
from fleetnas.agent.measuring.worker import Worker, child_command
from fleetnas.agent.runtimes.base import LoadedModel, OnBlock, TimedModel
from fleetnas.agent.runtimes.timing import Timing
from fleetnas.agent.service.speed_tracker import Verdict
from fleetnas.agent.service.task_result import make_result
from fleetnas.fleet_protocol.errors import RuntimeUnavailableError
from fleetnas.fleet_protocol.messages import MeasurementProtocol, Result, RuntimeSetting
from fleetnas.supernet_export.spaces.registry import make_space

TRUE_MS, REFERENCE_MS = 8.0, 4.0


def session(latency_ms: float, half_width_percent: float = 1.0, **fields: object) -> PairedTiming:
    """What one session tells: its latency, at undisturbed speed and as it ran."""
    paired = measured(latency_ms).paired
    assert paired is not None
    return paired.model_copy(update={"undisturbed_half_width_percent": half_width_percent, **fields})


def covers(paired: PairedTiming, true_ms: float) -> bool:
    assert paired.undisturbed_ms is not None
    return abs(math.log(paired.undisturbed_ms / true_ms)) <= paired.undisturbed_half_width_percent / 100


@pytest.mark.parametrize("sessions", [3, 5, 16])
@pytest.mark.parametrize("deviation", [0.01, 0.05])
def test_the_interval_covers_the_latency_over_all_sessions_as_often_as_it_claims(
    sessions: int, deviation: float
) -> None:
    rng = np.random.default_rng([sessions, round(1000 * deviation)])
    factors = np.exp(rng.normal(0.0, deviation, (2000, sessions)))
    found = [mean_paired([session(TRUE_MS * factor, 0.2) for factor in row], 2.0) for row in factors.tolist()]
    assert 0.935 <= np.mean([covers(each, TRUE_MS) for each in found]) <= 0.97
    ran = [each.timing for each in found]
    covered = [abs(math.log(each.median_ms / TRUE_MS)) <= each.half_width_percent / 100 for each in ran]
    assert np.mean(covered) >= 0.935


def test_one_session_alone_would_claim_too_much() -> None:
    rng = np.random.default_rng(0)
    alone = [session(TRUE_MS * factor, 0.2) for factor in np.exp(rng.normal(0.0, 0.05, 200))]
    assert np.mean([covers(each, TRUE_MS) for each in alone]) < 0.2


def test_sessions_that_agree_are_no_more_certain_than_their_own_intervals() -> None:
    found = mean_paired([session(TRUE_MS, 3.0)] * 9, 2.0)
    assert found.undisturbed_ms == pytest.approx(TRUE_MS)
    assert found.undisturbed_half_width_percent == pytest.approx(1.0)
    assert found.timing.half_width_percent == pytest.approx(1.0 / 3.0)
    assert (found.rounds, found.timing.runs) == (9 * 8, 9 * 50)


def test_a_disturbed_session_weighs_less_than_steady_ones() -> None:
    steady = [session(TRUE_MS, 1.0)] * 3
    found = mean_paired([*steady, session(1.2 * TRUE_MS, 14.0, basis="corrected")], 2.0)
    assert found.undisturbed_ms == pytest.approx(TRUE_MS, rel=0.02)
    assert found.basis == "corrected"
    assert found.undisturbed_half_width_percent >= 1.0


def test_sessions_that_tell_nothing_are_left_out_and_a_single_one_is_less_certain_than_it_says() -> None:
    nothing = session(2 * TRUE_MS, 20.0, undisturbed_ms=None, basis="none")
    found = mean_paired([nothing, session(TRUE_MS, 1.0), nothing], 2.0)
    assert found.undisturbed_ms == pytest.approx(TRUE_MS)
    assert found.undisturbed_half_width_percent > 3.0
    none = mean_paired([nothing] * 3, 2.0)
    assert (none.undisturbed_ms, none.basis) == (None, "none")


def test_a_level_that_is_lowered_between_two_sessions_applies_to_all() -> None:
    before = session(TRUE_MS, reference_ms=REFERENCE_MS, slowdown=0.9)
    after = session(0.9 * TRUE_MS, reference_ms=0.9 * REFERENCE_MS, slowdown=1.0)
    found = mean_paired([before, after], 2.0)
    assert found.reference_ms == after.reference_ms
    assert found.undisturbed_ms == pytest.approx(0.9 * TRUE_MS)
    assert (found.slowdown, found.fastest_slowdown) == pytest.approx((1.0, 1.0), rel=0.12)


def test_latency_as_it_ran_keeps_its_samples_within_the_bounds_of_a_result() -> None:
    long = measured(TRUE_MS).timing.model_copy(update={"block_medians_ms": (TRUE_MS,) * 80, "times_us": (8000.0,) * 20})
    found = mean_timing([long] * 16, 2.0)
    assert len(found.block_medians_ms) <= 100
    assert len(found.times_us) <= 20
    assert not found.noisy
    assert mean_timing([long, measured(1.1 * TRUE_MS).timing], 2.0).noisy


def test_a_protocol_is_divided_among_its_sessions() -> None:
    whole = MeasurementProtocol(min_runs=50, min_s=1.2, max_s=20.0, blocks=3, half_width_percent=1.0, sessions=4)
    share = session_share(whole)
    assert (share.min_runs, share.min_s, share.max_s, share.blocks) == (13, pytest.approx(0.3), 5.0, 1)
    assert (share.half_width_percent, share.sessions) == (2.0, 1)
    assert (share.warmup_s, share.warmup_runs) == (whole.warmup_s, whole.warmup_runs)
    assert session_share(MeasurementProtocol()) == MeasurementProtocol()


# -- sessions one after the other --------------------------------------------------------------------------------


class Session(LoadedModel):
    """One session of a simulated runtime: its latency is its own."""

    inputs = ()
    provider = "simulated"

    def __init__(self, library: Library, latency_ms: float) -> None:
        self._library, self.latency_ms = library, latency_ms

    def bind(self, tensors: Sequence[NDArray[Any]]) -> Callable[[], object]:
        def run() -> None:
            self._library.now_ns += round(1e6 * self.latency_ms * (1 + 0.01 * self._library.rng.exponential()))

        return run

    def outputs(self) -> list[NDArray[Any]]:
        return []

    def close(self) -> None:
        self._library.closed += 1


class Program(TimedModel):
    """A model that another program runs: each invocation is a session."""

    provider = "simulated"

    def __init__(self) -> None:
        self.invocations = self.closed = 0

    def time(self, protocol: MeasurementProtocol, on_block: OnBlock = lambda fraction: None) -> Timing:
        on_block(1.0)
        self.invocations += 1
        return measured(TRUE_MS).timing

    def close(self) -> None:
        self.closed += 1


@dataclass
class Library:
    """A simulated runtime and its clock; `fails_at` is the number of the session that is not loaded."""

    deviation: float = 0.05
    fails_at: int | None = None
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(3))
    now_ns: int = 0
    loaded: int = 0
    closed: int = 0
    most_open: int = 0
    _alive: weakref.WeakSet[Session] = field(default_factory=weakref.WeakSet)

    def load(self) -> TimedModel:
        if self.loaded == self.fails_at:
            raise RuntimeUnavailableError("no memory for another session")
        self.loaded += 1
        found = Session(self, TRUE_MS * math.exp(self.rng.normal(0.0, self.deviation)))
        self._alive.add(found)
        self.most_open = max(self.most_open, len(self._alive))
        return found

    def measure(self, protocol: MeasurementProtocol, on_block: Callable[[float, float], None]) -> PairedTiming:
        reference = Reference("c0ffee" * 2, 1e8, Session(self, REFERENCE_MS).bind(()), REFERENCE_MS)

        def time_model(model: TimedModel, report: OnBlock) -> tuple[Timing, PairedTiming | None]:
            assert isinstance(model, Session)
            clock_ns = self.clock_ns
            paired = measure_paired(model.bind(()), 2e8, reference, None, session_share(protocol), clock_ns=clock_ns)
            report(1.0)
            return paired.timing, paired

        runs, _ = run_sessions(protocol.sessions, self.load, time_model, on_block)
        return mean_paired([run.paired for run in runs if run.paired is not None], protocol.half_width_percent)

    def clock_ns(self) -> int:
        return self.now_ns


def ignore(session_fraction: float, fraction: float) -> None:
    del session_fraction, fraction


def test_sessions_that_differ_are_averaged_one_open_at_a_time_in_the_time_of_one_measurement() -> None:
    protocol = MeasurementProtocol(sessions=4, min_s=1.0)
    library, fractions = Library(), list[float]()
    found = [library.measure(protocol, lambda _, fraction: fractions.append(fraction)) for _ in range(25)]
    assert np.mean([covers(each, TRUE_MS) for each in found]) >= 0.9
    assert (library.loaded, library.closed, library.most_open) == (100, 100, 1)
    assert fractions[:4] == [0.25, 0.5, 0.75, 1.0]
    alone = Library(deviation=0.0)
    alone.measure(MeasurementProtocol(min_s=1.0), ignore)
    library.now_ns = 0
    library.measure(protocol, ignore)
    own_warm_up_ns = 3e9 * protocol.warmup_s
    assert library.now_ns - own_warm_up_ns <= 1.25 * alone.now_ns


def test_a_session_that_does_not_load_fails_the_measurement_and_leaves_nothing_open() -> None:
    library = Library(fails_at=2)
    with pytest.raises(RuntimeUnavailableError):
        library.measure(MeasurementProtocol(sessions=4), ignore)
    assert (library.loaded, library.closed) == (2, 2)


def test_a_session_that_breaks_while_it_is_timed_is_closed() -> None:
    library = Library()

    def break_second(model: TimedModel, report: OnBlock) -> tuple[Timing, None]:
        if library.loaded == 2:
            raise MemoryError
        return measured().timing, None

    with pytest.raises(MemoryError):
        run_sessions(3, library.load, break_second, ignore)
    assert (library.loaded, library.closed) == (2, 2)


def test_an_accelerator_that_compiles_for_long_gets_fewer_sessions() -> None:
    library, now_s = Library(), 0.0

    def compile_for_long() -> TimedModel:
        nonlocal now_s
        now_s += 20.0
        return library.load()

    runs, _ = run_sessions(8, compile_for_long, lambda model, report: (measured().timing, None), ignore, lambda: now_s)
    assert len(runs) == library.loaded == library.closed == 2


def test_a_program_of_its_own_is_loaded_once_and_invoked_for_each_session() -> None:
    program, loads = Program(), list[Program]()

    def load() -> TimedModel:
        loads.append(program)
        return program

    runs, model = run_sessions(5, load, lambda model, report: (model.time(MeasurementProtocol(), report), None), ignore)
    assert model is program
    assert (len(loads), program.invocations, program.closed, len(runs)) == (1, 5, 1, 5)
    assert typical_load_ms(runs) == runs[0].load_ms


# -- in the child and in results ---------------------------------------------------------------------------------


@pytest.fixture
def order(tmp_path: Path) -> MeasureOrder:
    space = make_space("digits")
    bundle = random_bundle(tmp_path / "digits.supernet", space)
    return MeasureOrder(
        bundle_path=str(bundle.path),
        bundle_sha256=bundle.sha256,
        architecture=space.decode(space.smallest())[0],
        setting=RuntimeSetting(),
        protocol=MeasurementProtocol(
            warmup_runs=1, warmup_s=0.0, min_runs=9, min_s=0.03, half_width_percent=1000.0, sessions=3
        ),
        references=ReferenceOrder(at_most=2),
    )


def test_the_child_averages_over_the_sessions_of_an_order(order: MeasureOrder, tmp_path: Path) -> None:
    worker = Worker(child_command(tmp_path / "lock"))
    try:
        worker.submit(order)
        reply = final_reply(worker)
        assert isinstance(reply, MeasuredReply), reply
        assert reply.paired is not None
        assert len(reply.session_medians_ms) == 3
        assert reply.timing.median_ms == pytest.approx(float(np.exp(np.mean(np.log(reply.session_medians_ms)))))
        assert min(reply.session_medians_ms) <= reply.timing.median_ms <= max(reply.session_medians_ms)
        model = tmp_path / "own.onnx"
        model.write_bytes(b"no model")
        worker.submit(BenchOrder(model_path=str(model), setting=order.setting, protocol=order.protocol))
        assert isinstance(final_reply(worker), FailedReply)
    finally:
        worker.close()


def test_a_measurement_that_is_cancelled_between_two_sessions_leaves_a_child_that_measures(
    order: MeasureOrder, tmp_path: Path
) -> None:
    worker = Worker(child_command(tmp_path / "lock"))
    try:
        long = order.protocol.model_copy(update={"sessions": 16, "min_s": 400.0, "max_s": 500.0})
        worker.submit(order.model_copy(update={"protocol": long}))
        while True:
            reply = next_reply(worker)
            if isinstance(reply, PhaseReply) and reply.phase == "measuring":
                break
        worker.kill()
        worker.submit(order)
        assert isinstance(final_reply(worker), MeasuredReply)
    finally:
        worker.close()


def test_a_result_tells_its_sessions_and_a_reply_without_them_is_one_session() -> None:
    verdict = Verdict("ok", 0.0, 1.0, new_regime=False)

    def result(reply: MeasuredReply) -> Result:
        assert reply.paired is not None
        found = make_result(task(), reply, reply.paired, verdict, levels_ms=(1.0,), finished_unix_s=1.0)
        assert isinstance(found, Result)
        return found

    averaged = result(measured(4.0, session_medians_ms=(3.9, 4.0, 4.1))).measurement
    assert (averaged.sessions, averaged.session_medians_ms) == (3, (3.9, 4.0, 4.1))
    assert (result(measured()).measurement.sessions, result(measured()).measurement.session_medians_ms) == (1, ())
