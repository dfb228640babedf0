"""A simulated device of known latencies under a known disturbance, and a simulated agent that measures on it.

Time is a `FakeClock`. An inference advances it by the subnet's latency times its slow-down at that moment times a small
noise; building, loading and waiting advance it too. The measuring is the agent's own code.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fleetnas.agent.measuring.levels import continued_levels
from fleetnas.agent.measuring.messages import MeasuredReply, PairedTiming, ReferenceOrder, SlowReply
from fleetnas.agent.measuring.paired import Reference, measure_paired, read_levels, reference_turn_s
from fleetnas.agent.measuring.references import Rung, ladder
from fleetnas.agent.measuring.session_averages import mean_paired
from fleetnas.agent.measuring.session_share import session_share
from fleetnas.agent.measuring.steady import WINDOW_S, warm_until_steady
from fleetnas.agent.measuring.undisturbed import low, median
from fleetnas.agent.service.drift_monitor import DriftMonitor
from fleetnas.coordinator.predictors.features import FeatureMap
from fleetnas.coordinator.predictors.prior import INDICATOR
from fleetnas.fleet_protocol.messages import Conditions, Measurement, MeasurementProtocol, Progress
from fleetnas.fleet_protocol.orders import MeasureTask
from fleetnas.supernet_export.spaces.base import DesignSpace, Genomes
from rigs.disturbances import STEP_S, Disturbance, sensitivity
from rigs.simulated_fleet import FakeClock, SimulatedAgent, file_sha256

Floats = NDArray[np.float64]
Genome = NDArray[np.int16]
Run = Callable[[], None]

#: Time of a task to build and to load the model, seconds: the median of `ofa-mbv3` subnets on onnxruntime.
BUILD_AND_LOAD_S = 0.07
#: Interval between two readings of the references while a task waits for its device.
LOOK_AGAIN_S = 2.0
#: Duration of such a reading, seconds.
_LOOK_S = 0.1
#: Relative standard deviations: of single inferences, and between two sessions of one model.
INFERENCE_NOISE, SESSION_NOISE = 0.01, 0.005
#: Share of inferences that are interrupted, and the mean relative length of an interruption.
_INTERRUPTED, _INTERRUPTION = 0.01, 0.3
_NOISE_DRAWS = 8192
#: Devices are drawn from these ranges: milliseconds of the smallest subnet, and the largest subnet's over it.
_RANGES = {"digits": ((0.25, 0.4), (15.0, 20.0))}
_RANGE = ((9.0, 12.0), (5.0, 6.5))


class TrueLatency:
    """Latency of a device at undisturbed speed: linear in the features, plus a model discrepancy of up to 2 %."""

    def __init__(self, space: DesignSpace, seed: int) -> None:
        rng = np.random.default_rng([seed, 2])
        self.space, self.features = space, FeatureMap(space)
        typical = self.features.features(space.sample(300, np.random.default_rng(0))).mean(axis=0)
        weights = rng.uniform(0.2, 2.0, len(self.features))
        # A larger input is never faster.
        resolutions = np.flatnonzero(self.features.groups == INDICATOR)
        weights[resolutions] = np.sort(weights[resolutions])
        weights /= np.maximum(typical * len(self.features), 1e-9)
        of_smallest, of_largest = _RANGES.get(space.name, _RANGE)
        smallest_ms, ratio = rng.uniform(*of_smallest), rng.uniform(*of_largest)
        ends = self.features.features(np.concatenate([space.smallest(), space.largest()])) @ weights
        weights *= smallest_ms * (ratio - 1.0) / (ends[1] - ends[0])
        weights[0] += smallest_ms - float(self.features.features(space.smallest())[0] @ weights)
        #: Milliseconds per unit of each feature, (F,): all but the model discrepancy.
        self.weights: Floats = weights

    def predict(self, genomes: Genomes) -> Floats:
        """Milliseconds of canonical genomes, (n,)."""
        wave = 1.0 + 0.02 * np.sin(7.0 * (genomes @ np.arange(self.space.gene_count)))
        found: Floats = (self.features.features(genomes) @ self.weights) * wave
        return found


class DisturbedDevice:
    """One device under one course of a profile, which begins when the device is created."""

    def __init__(self, space: DesignSpace, seed: int, disturbance: Disturbance, clock: FakeClock) -> None:
        self.space, self.disturbance, self.clock = space, disturbance, clock
        self.latency = TrueLatency(space, seed)
        self.begin_s = clock.now_s
        self._rng = np.random.default_rng([seed, 1])
        noise = np.exp(self._rng.normal(0.0, INFERENCE_NOISE, _NOISE_DRAWS))
        interrupted = self._rng.random(_NOISE_DRAWS) < _INTERRUPTED
        noise[interrupted] *= 1.0 + self._rng.exponential(_INTERRUPTION, int(interrupted.sum()))
        self._noise = itertools.cycle(noise.tolist())
        # The garbage collector stops looking into tuples of numbers.
        self._uniform, self._contention = tuple(disturbance.uniform.tolist()), tuple(disturbance.contention.tolist())

    def slowdown(self, genome: Genome) -> float:
        """The subnet's slow-down now."""
        now_s = self.clock.now_s - self.begin_s
        return float(self.disturbance.typical(sensitivity(self.space, genome[None]), now_s, now_s)[0])

    def session(self, genome: Genome) -> Run:
        """Load a subnet's model; the function returned runs one inference. Sessions of one model differ a little."""
        clock, begin_s, noise = self.clock, self.begin_s, self._noise
        uniform, contention = self._uniform, self._contention
        share = float(sensitivity(self.space, genome[None])[0])
        seconds = float(self.latency.predict(genome[None])[0]) / 1000.0
        seconds *= math.exp(self._rng.normal(0.0, SESSION_NOISE))
        per_s = 1.0 / STEP_S

        def run() -> None:
            now_s = clock.now_s
            step = int((now_s - begin_s) * per_s)
            clock.now_s = now_s + seconds * uniform[step] * (1.0 + share * contention[step]) * next(noise)

        return run


class SimulatedBench:
    """Measures subnets on a device as the agent and its child do, and adds up the time per activity.

    What needs no real runtime is the agent's own code; the rest follows `agent/measuring/order_executor.py` and
    `agent/measuring/pairing.py`.
    """

    def __init__(self, device: DisturbedDevice) -> None:
        self.device, self.clock = device, device.clock
        self.drift = DriftMonitor()
        #: Seconds: of tasks in all, inside subjects' and references' inference, and of waiting for the device.
        self.busy_s = self.subject_s = self.reference_s = self.waited_s = 0.0
        self._rungs = ladder(device.space)
        self._runs: dict[str, Run] = {}
        self._levels_ms: dict[str, float] = {}
        self._calibrated = False

    def measure(self, task: MeasureTask, on_wait: Callable[[], None] = lambda: None) -> Measurement:
        """Carry out a task; `on_wait` is called before each interval of waiting."""
        began_s = self.clock.now_s
        (genome,) = self.device.space.encode([task.architecture])
        macs = float(self.device.space.macs(genome[None])[0])
        near = min(self._rungs, key=lambda rung: abs(math.log(rung.macs / macs)))
        far = self._rungs[0] if near is not self._rungs[0] else self._rungs[-1]
        order = self._ready(task, near, on_wait)
        sessions: list[PairedTiming] = []
        for _ in range(task.protocol.sessions):
            self.clock.now_s += BUILD_AND_LOAD_S
            paired = measure_paired(
                self.device.session(genome),
                macs,
                self._reference(near, order),
                self._reference(far, order),
                session_share(task.protocol),
                clock_ns=self._clock_ns,
                keep_level=order.keep_levels,
            )
            if paired.reference_ms < self._levels_ms[paired.reference]:
                self._levels_ms[paired.reference], self._calibrated = paired.reference_ms, False
            sessions.append(paired)
        paired = mean_paired(sessions, task.protocol.half_width_percent)
        self.subject_s += paired.subject_inference_s
        self.reference_s += paired.reference_inference_s
        self.busy_s += self.clock.now_s - began_s
        return self._judged(task, paired, tuple(each.timing.median_ms for each in sessions))

    def _ready(self, task: MeasureTask, near: Rung, on_wait: Callable[[], None]) -> ReferenceOrder:
        """Load and read the references, and wait for a device that is slower than the task allows."""
        if not self._runs:
            genomes = self.device.space.encode([rung.architecture for rung in self._rungs])
            self._runs = {
                rung.fingerprint: self.device.session(genome) for rung, genome in zip(self._rungs, genomes, strict=True)
            }
            self.clock.now_s += BUILD_AND_LOAD_S * len(self._runs)
        give_up_s = self.clock.now_s + self.drift.patience_s(task)
        while True:
            order = self.drift.reference_order(task, self.clock.now_s, may_wait=self.clock.now_s < give_up_s)
            if order.warm_up:
                self._warm_up(on_wait)
            self._calibrate(order, session_share(task.protocol))
            slowdown = self._slowdown(near) if order.slow_above is not None else None
            if order.slow_above is None or slowdown is None or slowdown <= order.slow_above:
                return order
            self.drift.note_slow(
                task, SlowReply(slowdown=slowdown, levels_ms=self._levels_ms), self.clock.now_s, self.clock.unix()
            )
            on_wait()
            self.clock.now_s += LOOK_AGAIN_S
            self.waited_s += LOOK_AGAIN_S

    def _calibrate(self, order: ReferenceOrder, protocol: MeasurementProtocol) -> None:
        """Learn the references' levels where they are not known."""
        if self._calibrated and self._runs.keys() <= order.levels_ms.keys():
            self._levels_ms = dict(order.levels_ms)
            return
        timed = [(run, self._repeat(run, 0.0, 2)[-1]) for run in self._runs.values()]
        levels_ms, spent_s = read_levels(timed, reference_turn_s(protocol), clock_ns=self._clock_ns)
        self.reference_s += spent_s
        self._levels_ms = continued_levels(dict(zip(self._runs, levels_ms, strict=True)), order.levels_ms)
        self._calibrated = True

    def _warm_up(self, on_wait: Callable[[], None]) -> None:
        def window() -> tuple[float, float]:
            times_ms = self._repeat(self._runs[self._rungs[-1].fingerprint], WINDOW_S)
            return median(times_ms), sum(times_ms) / 1000.0

        began_s = self.clock.now_s
        warm_until_steady(window, lambda: self.clock.now_s, lambda _: on_wait())
        self.waited_s += self.clock.now_s - began_s

    def _slowdown(self, near: Rung) -> float:
        times_ms = self._repeat(self._runs[near.fingerprint], _LOOK_S, 3)
        return low(times_ms) / self._levels_ms[near.fingerprint]

    def _repeat(self, run: Run, seconds: float, runs: int = 1) -> list[float]:
        """Milliseconds of inferences in a row: at least this many, for at least this long."""
        times_ms, end_s = list[float](), self.clock.now_s + seconds
        while len(times_ms) < runs or self.clock.now_s < end_s:
            start_s = self.clock.now_s
            run()
            times_ms.append(1000.0 * (self.clock.now_s - start_s))
        self.reference_s += sum(times_ms) / 1000.0
        return times_ms

    def _reference(self, rung: Rung, order: ReferenceOrder) -> Reference:
        name = rung.fingerprint
        return Reference(name, rung.macs, self._runs[name], self._levels_ms[name], order.normals.get(name, 1.0))

    def _judged(self, task: MeasureTask, paired: PairedTiming, session_medians_ms: tuple[float, ...]) -> Measurement:
        reply = MeasuredReply(
            model_sha256=file_sha256(task.architecture, task.calibration),
            model_bytes=1000,
            timing=paired.timing,
            provider="CPUExecutionProvider",
            build_ms=500.0 * BUILD_AND_LOAD_S,
            load_ms=500.0 * BUILD_AND_LOAD_S,
            before=Conditions(),
            after=Conditions(),
            paired=paired,
            levels_ms=self._levels_ms,
            busy_s=0.0,
            inference_s=0.0,
        )
        verdict = self.drift.judge(task, reply, paired, self.clock.now_s, self.clock.unix())
        return Measurement(
            **reply.model_dump(include={"model_sha256", "model_bytes", "provider", "build_ms", "load_ms"}),
            **paired.timing.model_dump(include=set(Measurement.model_fields)),
            quality=verdict.quality,
            undisturbed_ms=paired.undisturbed_ms,
            undisturbed_half_width_percent=paired.undisturbed_half_width_percent,
            reference=paired.reference,
            reference_ms=paired.reference_ms,
            levels_ms=self.drift.levels_ms(task),
            sessions=task.protocol.sessions,
            session_medians_ms=session_medians_ms,
            condition=task.condition,
            regime_unix_s=verdict.regime_unix_s,
            finished_unix_s=self.clock.unix(),
        )

    def _clock_ns(self) -> int:
        return round(1e9 * self.clock.now_s)


class DisturbedAgent(SimulatedAgent):
    """A simulated agent with one disturbed device; a measurement advances the clock by the time it takes."""

    bench: SimulatedBench

    def _measure(self, task: MeasureTask) -> Measurement:
        return self.bench.measure(task, lambda: self._say_progress(task))

    def _say_progress(self, task: MeasureTask) -> None:
        self._say("task", Progress(task=task.task, phase="cooling", fraction=0.0))
