"""Run times of single inferences, from the samples on the device to the result on the wire."""

from __future__ import annotations

from itertools import cycle, repeat

import numpy as np
import pytest
from rigs.agent_rig import measured, task

from fleetnas.agent.measuring.messages import MeasuredReply
from fleetnas.agent.measuring.paired import Reference, measure_paired
from fleetnas.agent.measuring.session_averages import mean_timing
from fleetnas.agent.measuring.session_share import session_share
from fleetnas.agent.runtimes.timing import measure
from fleetnas.agent.service.speed_tracker import Verdict
from fleetnas.agent.service.task_result import make_result
from fleetnas.fleet_protocol.codec import decode_task_update, encode
from fleetnas.fleet_protocol.messages import MeasurementProtocol, Result
from fleetnas.fleet_protocol.percentiles import percentile_times, runs_needed

ASKED = MeasurementProtocol(percentiles=(95.0,), min_runs=300)


class Device:
    """A clock that only inferences advance, by the durations given, in ms."""

    def __init__(self, durations_ms: object) -> None:
        self.now_ns = 0
        self._durations = iter(durations_ms)  # type: ignore[call-overload]

    def run(self) -> None:
        self.now_ns += round(1e6 * next(self._durations))

    def clock_ns(self) -> int:
        return self.now_ns


def test_every_sample_is_one_inference_where_percentiles_are_asked_for() -> None:
    fast = Device(repeat(0.08))
    plain = measure(fast.run, MeasurementProtocol(), clock_ns=fast.clock_ns)
    assert (plain.inner_loops, plain.samples_ms) == (13, ())
    fast = Device(repeat(0.08))
    asked = measure(fast.run, ASKED, clock_ns=fast.clock_ns)
    assert asked.inner_loops == 1
    assert len(asked.samples_ms) == asked.runs >= 300


def test_stalls_of_single_inferences_are_in_the_percentile_and_in_the_mean() -> None:
    device = Device(cycle([*[0.1] * 12, 1.0]))  # inner loops would hide them
    timing = measure(device.run, ASKED, clock_ns=device.clock_ns)
    (p95,) = percentile_times(timing.samples_ms, (95.0,))
    assert timing.median_ms == pytest.approx(0.1)
    assert p95.value_ms == pytest.approx(1.0)
    assert timing.mean_ms == pytest.approx((12 * 0.1 + 1.0) / 13, rel=0.01)


def test_paired_samples_are_single_inferences_and_as_many_as_asked_for() -> None:
    device = Device(repeat(0.2))
    near = Reference("f" * 12, 1e6, device.run, 0.2)
    paired = measure_paired(device.run, 1e6, near, None, ASKED, clock_ns=device.clock_ns)
    assert paired.timing.inner_loops == 1
    assert len(paired.timing.samples_ms) == paired.timing.runs >= 300


def test_sessions_share_the_runs_and_are_pooled_alike() -> None:
    protocol = ASKED.model_copy(update={"sessions": 3, "min_runs": runs_needed(95.0)})
    share = session_share(protocol)
    assert share.percentiles == (95.0,)
    timings = []
    for latency_ms in (10.0, 10.2, 11.0):
        device = Device(repeat(latency_ms))
        timings.append(measure(device.run, share, clock_ns=device.clock_ns))
    pooled = mean_timing(timings, 1.0)
    counts = {value: pooled.samples_ms.count(value) for value in set(pooled.samples_ms)}
    assert len(set(counts.values())) == 1
    assert len(pooled.samples_ms) >= runs_needed(95.0)
    assert pooled.mean_ms == pytest.approx(np.mean([10.0, 10.2, 11.0]))


def test_all_samples_stay_on_the_device_and_percentiles_cross_the_wire() -> None:
    reply = measured(10.0)
    times = np.random.default_rng(0).lognormal(2.3, 0.05, 500).tolist()
    timing = reply.timing.model_copy(update={"samples_ms": tuple(times), "mean_ms": 10.1})
    reply = reply.model_copy(update={"timing": timing, "percentiles": percentile_times(times, (95.0,))})
    assert "samples_ms" not in reply.model_dump_json()
    again = MeasuredReply.model_validate_json(reply.model_dump_json())
    assert again.paired is not None
    verdict = Verdict("ok", 0.0, 1.0, new_regime=False)
    result = make_result(task(1), again, again.paired, verdict, levels_ms=(), finished_unix_s=1.0)
    assert isinstance(result, Result)
    received = decode_task_update(encode(result))
    assert isinstance(received, Result)
    assert received.measurement.percentiles == percentile_times(times, (95.0,))
    assert received.measurement.mean_ms == 10.1
    assert len(encode(result)) < 2000
