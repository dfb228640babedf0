"""A simulated device of known latencies under a known disturbance, and a simulated agent that measures on it.

Time is a `FakeClock`. An inference advances it by the subnet's latency times its slow-down at that moment times a small
noise; building, loading and waiting advance it too. The measuring is the agent's own code.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
from disturbances import STEP_S, Disturbance, sensitivity
from numpy.typing import NDArray
from simulated_fleet import FakeClock, SimulatedAgent, file_sha256, measurement

from agent.paired import Reference, measure_paired, read_levels
from agent.speed import SpeedTracker
from agent.undisturbed import median
from coordinator.predictors.features import FeatureMap
from coordinator.predictors.prior import INDICATOR
from fleet_protocol.messages import Measurement, MeasureTask, Progress
from supernet_export.spaces.base import DesignSpace, Genomes

Floats = NDArray[np.float64]
Genome = NDArray[np.int16]
Run = Callable[[], None]

#: Time of a task to build and to load the model.
BUILD_AND_LOAD_S = 0.15
#: Interval between two readings of the references while a task waits for its device.
LOOK_AGAIN_S = 2.0
#: Slow-down up to which a device is cool.
_COOL = 1.05
#: Warming up: windows of the largest reference, seconds, how many must agree and how closely, and bounds of the whole.
_WINDOW_S, _STEADY_WINDOWS, _STEADY_TOLERANCE = 5.0, 3, 0.02
_LEAST_WARM_UP_S, _MOST_WARM_UP_S = 30.0, 600.0
#: A warm device that has done nothing for longer is warmed up again, seconds.
_COOLED_AFTER_S = 20.0
#: Relative standard deviations: of single inferences, and between two sessions of one model.
INFERENCE_NOISE, SESSION_NOISE = 0.01, 0.005
#: Share of inferences that are interrupted, and the mean relative length of an interruption.
_INTERRUPTED, _INTERRUPTION = 0.01, 0.3
_NOISE_DRAWS = 8192
#: Turns of the references, seconds: when their levels are read, and when the device is looked at.
_LEVEL_TURN_S, _LOOK_S = 0.03, 0.02
_KEY = "device"
#: Devices are drawn from these ranges: milliseconds of the smallest subnet, and the largest subnet's over it.
_RANGES = {"digits": ((0.25, 0.4), (15.0, 20.0))}
_RANGE = ((9.0, 12.0), (5.0, 6.5))


class TrueLatency:
    """Latency of a device at undisturbed speed: linear in the features, plus a misfit of up to 2 %."""

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
        #: Milliseconds per unit of each feature, (F,): all but the misfit.
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
    """Measures subnets on a device with the agent's own code, and adds up the time per activity."""

    def __init__(self, device: DisturbedDevice) -> None:
        self.device, self.clock = device, device.clock
        self.speed = SpeedTracker()
        #: Seconds: of tasks in all, inside subjects' and references' inference, and of waiting for the device.
        self.busy_s = self.subject_s = self.reference_s = self.waited_s = 0.0
        ladder = _rungs(device.space)
        self._names = [architecture.fingerprint for architecture in device.space.decode(ladder)]
        self._ladder, self._sizes = ladder, device.space.macs(ladder)
        self._sessions: list[Run] = []
        self._worked_s = float("-inf")

    def measure(self, task: MeasureTask, on_wait: Callable[[], None] = lambda: None) -> Measurement:
        """Carry out a task; `on_wait` is called before each interval of waiting."""
        began_s = self.clock.now_s
        idle_s = began_s - self._worked_s
        if not self._sessions:
            self._load_references()
        if task.condition == "sustained" and idle_s > _COOLED_AFTER_S:
            self._warm_up(on_wait)
        self._wait(task, on_wait)
        self.clock.now_s += BUILD_AND_LOAD_S
        (genome,) = self.device.space.encode([task.architecture])
        size = float(self.device.space.macs(genome[None])[0])
        near, far = self._references(size)
        timing = measure_paired(
            self.device.session(genome),
            size,
            near,
            far,
            task.protocol,
            clock_ns=self._clock_ns,
            keep_level=task.condition == "sustained",
        )
        self.subject_s += timing.subject_inference_s
        self.reference_s += timing.reference_inference_s
        self.busy_s += self.clock.now_s - began_s
        self._worked_s = self.clock.now_s
        verdict = self.speed.judge(_KEY, timing, throttled=None, ended_unix_s=self.clock.unix())
        return measurement(
            timing.timing.median_ms,
            file_sha256(task.architecture, task.calibration),
            self.clock.unix(),
            **timing.timing.model_dump(exclude={"median_ms", "noisy", "inference_s"}),
            quality=verdict.quality,
            undisturbed_ms=timing.undisturbed_ms,
            undisturbed_half_width_percent=timing.undisturbed_half_width_percent,
            reference=timing.reference,
            reference_ms=timing.reference_ms,
            condition=task.condition,
            regime_unix_s=verdict.regime_unix_s,
        )

    def _load_references(self) -> None:
        self._sessions = [self.device.session(genome) for genome in self._ladder]
        self.clock.now_s += BUILD_AND_LOAD_S
        self._calibrate()

    def _calibrate(self) -> None:
        """Take the references' present latencies for their levels."""
        levels_ms = self._read(_LEVEL_TURN_S)
        self.speed.learn_levels(_KEY, dict(zip(self._names, levels_ms, strict=True)))

    def _read(self, turn_s: float, **options: int) -> list[float]:
        about_ms = self.device.latency.predict(self._ladder).tolist()
        levels_ms, spent_s = read_levels(
            list(zip(self._sessions, about_ms, strict=True)), turn_s, clock_ns=self._clock_ns, **options
        )
        self.reference_s += spent_s
        return levels_ms

    def _warm_up(self, on_wait: Callable[[], None]) -> None:
        """Run the largest reference until its speed is steady; the references' levels are read there."""
        began_s, windows = self.clock.now_s, list[float]()
        while self.clock.now_s - began_s < _MOST_WARM_UP_S:
            on_wait()
            window_s, runs = self.clock.now_s, 0
            while self.clock.now_s - window_s < _WINDOW_S:
                self._sessions[-1]()
                runs += 1
            windows.append((self.clock.now_s - window_s) / runs)
            latest = windows[-_STEADY_WINDOWS:]
            steady = len(latest) == _STEADY_WINDOWS and max(latest) <= (1 + _STEADY_TOLERANCE) * min(latest)
            if steady and self.clock.now_s - began_s >= _LEAST_WARM_UP_S:
                break
        self.waited_s += self.clock.now_s - began_s
        self._calibrate()

    def _references(self, size: float) -> tuple[Reference, Reference]:
        """The reference nearest in size, and the smallest one (the largest, where the nearest is the smallest)."""
        levels_ms, normals = self.speed.levels(_KEY), self.speed.normals(_KEY)
        nearest = int(np.argmin(np.abs(np.log(self._sizes / size))))
        far = 0 if nearest else len(self._names) - 1
        near, other = (
            Reference(
                self._names[place],
                float(self._sizes[place]),
                self._sessions[place],
                levels_ms[self._names[place]],
                normals[self._names[place]],
            )
            for place in (nearest, far)
        )
        return near, other

    def _wait(self, task: MeasureTask, on_wait: Callable[[], None]) -> None:
        """Wait for a device that is slower than the task allows, for as long as the task allows."""
        limit = _COOL if task.condition == "cool" else task.wait_above
        give_up_s = self.clock.now_s + task.wait_s
        while limit is not None and self.clock.now_s < give_up_s and self.slowdown() > limit:
            on_wait()
            self.clock.now_s += LOOK_AGAIN_S
            self.waited_s += LOOK_AGAIN_S

    def slowdown(self) -> float:
        """Read the references: their median slow-down now."""
        levels_ms = self.speed.levels(_KEY)
        readings = self._read(_LOOK_S, least_turns=1, most_turns=1)
        return median([now / levels_ms[name] for name, now in zip(self._names, readings, strict=True)])

    def _clock_ns(self) -> int:
        return round(1e9 * self.clock.now_s)


class DisturbedAgent(SimulatedAgent):
    """A simulated agent with one disturbed device; a measurement advances the clock by the time it takes."""

    bench: SimulatedBench

    def _measure(self, task: MeasureTask) -> Measurement:
        return self.bench.measure(task, lambda: self._say_progress(task))

    def _say_progress(self, task: MeasureTask) -> None:
        self._say("task", Progress(task=task.task, phase="cooling", fraction=0.0))


def _rungs(space: DesignSpace) -> Genomes:
    """Five subnets from the smallest to the largest, evenly spaced in the logarithm of the MACs, (5, G)."""
    rng, smallest, largest = np.random.default_rng(0), space.smallest(), space.largest()
    shares = np.repeat(np.linspace(0.05, 0.95, 19), 100)[:, None]
    mixed = np.where(rng.random((len(shares), space.gene_count)) < shares, largest, smallest)
    pool = space.canonical(mixed.astype(np.int16))
    ends = space.macs(np.concatenate([smallest, largest]))
    found = [pool[np.argmin(np.abs(np.log(space.macs(pool) / macs)))] for macs in np.geomspace(*ends, 5)[1:-1]]
    return np.concatenate([smallest, np.stack(found), largest])
