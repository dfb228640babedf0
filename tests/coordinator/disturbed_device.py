"""A device of known latencies that something slows down, and the simulated agent that measures on it.

Time is a `FakeClock`: an inference moves it on by the subnet's latency times its slow-down at that moment, times a little
noise. So do building, loading and waiting. The measuring itself is the agent's.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
from disturbances import STEP_S, Disturbance, sensitivity
from numpy.typing import NDArray
from simulated_fleet import FakeClock, SimulatedAgent, file_sha256, measurement

from agent.measurement import median, median_half_width
from coordinator.predictors.features import FeatureMap
from coordinator.predictors.prior import INDICATOR
from fleet_protocol.messages import Measurement, MeasurementProtocol, MeasureTask, Progress
from supernet_export.spaces.base import DesignSpace, Genomes

Floats = NDArray[np.float64]
Genome = NDArray[np.int16]
Run = Callable[[], None]

#: What a task takes beside inference: half of it builds the file, half loads it.
BUILD_AND_LOAD_S = 0.15
#: A device that is waited for is looked at again after this long.
LOOK_AGAIN_S = 2.0
#: Relative standard deviation of one inference, and of one loading of a model against another.
INFERENCE_NOISE, SESSION_NOISE = 0.01, 0.005
#: Share of inferences that something interrupts, and how much longer these take on average, relative.
_INTERRUPTED, _INTERRUPTION = 0.01, 0.3
_NOISE_DRAWS = 8192
#: Milliseconds of the smallest subnet, and of the largest one over it: a range for each that devices are drawn from.
_RANGES = {"digits": ((0.4, 0.6), (8.0, 11.0))}
_RANGE = ((9.0, 12.0), (5.0, 6.5))


class TrueLatency:
    """Latency of a device at undisturbed speed: linear in the features up to a misfit of a few percent."""

    def __init__(self, space: DesignSpace, seed: int) -> None:
        rng = np.random.default_rng([seed, 2])
        self.space, self.features = space, FeatureMap(space)
        typical = self.features.features(space.sample(300, np.random.default_rng(0))).mean(axis=0)
        weights = rng.uniform(0.2, 2.0, len(self.features))
        # A larger input never costs less.
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
    """One device under one course of a profile; second 0 of that is the clock's time when it is made."""

    def __init__(self, space: DesignSpace, seed: int, disturbance: Disturbance, clock: FakeClock) -> None:
        self.space, self.disturbance, self.clock = space, disturbance, clock
        self.latency = TrueLatency(space, seed)
        self.begin_s = clock.now_s
        self._rng = np.random.default_rng([seed, 1])
        noise = np.exp(self._rng.normal(0.0, INFERENCE_NOISE, _NOISE_DRAWS))
        interrupted = self._rng.random(_NOISE_DRAWS) < _INTERRUPTED
        noise[interrupted] *= 1.0 + self._rng.exponential(_INTERRUPTION, int(interrupted.sum()))
        self._noise = itertools.cycle(noise.tolist())
        self._uniform, self._contention = disturbance.uniform.tolist(), disturbance.contention.tolist()

    def slowdown(self, genome: Genome) -> float:
        """The subnet's slow-down now."""
        now_s = self.clock.now_s - self.begin_s
        return float(self.disturbance.typical(sensitivity(self.space, genome[None]), now_s, now_s)[0])

    def session(self, genome: Genome) -> Run:
        """Load a subnet's model: what is returned runs it once. No loading is quite like another."""
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
    """Measures subnets on a device as an agent's child does, and knows where the time went, in seconds."""

    def __init__(self, device: DisturbedDevice) -> None:
        self.device, self.clock = device, device.clock
        self.busy_s = self.subject_s = 0.0
        self.waited_s = 0.0
        self._ladder = _rungs(device.space)
        self._references: list[Run] = []
        self._levels_ms: list[float] = []

    def measure(self, task: MeasureTask, on_wait: Callable[[], None] = lambda: None) -> Measurement:
        """Carry a task out; `on_wait` is told whenever the device is waited for."""
        began_s = self.clock.now_s
        self._prepare()
        self._wait(task, on_wait)
        self.clock.now_s += BUILD_AND_LOAD_S
        (genome,) = self.device.space.encode([task.architecture])
        found = self._measure_in_turns(genome, task)
        self.busy_s += self.clock.now_s - began_s
        return found

    def _prepare(self) -> None:
        """Load the references and take what they take now for what they take undisturbed."""
        if not self._references:
            self._references = [self.device.session(genome) for genome in self._ladder]
            self.clock.now_s += BUILD_AND_LOAD_S
            self._levels_ms = [_quantile(self._turn(run, 0.1), 0.25) for run in self._references]

    def _wait(self, task: MeasureTask, on_wait: Callable[[], None]) -> None:
        give_up_s = self.clock.now_s + task.wait_s
        while task.wait_above is not None and self.clock.now_s < give_up_s:
            readings = [_quantile(self._turn(run, 0.02), 0.25) for run in self._references]
            slow = median(sorted(now / level for now, level in zip(readings, self._levels_ms, strict=True)))
            if slow <= task.wait_above:
                return
            on_wait()
            self.clock.now_s += LOOK_AGAIN_S
            self.waited_s += LOOK_AGAIN_S

    def _measure_in_turns(self, genome: Genome, task: MeasureTask) -> Measurement:
        # A stand-in for the agent's own paired measurement.
        protocol: MeasurementProtocol = task.protocol
        macs = np.log(self.device.space.macs(np.concatenate([genome[None], self._ladder])))
        nearest = int(np.argmin(np.abs(macs[1:] - macs[0])))
        subject, reference = self.device.session(genome), self._references[nearest]
        began_s = self.clock.now_s
        self._turn(subject, protocol.warmup_s)
        self.subject_s += self.clock.now_s - began_s
        rounds: list[tuple[list[float], list[float]]] = []
        for _ in range(8):
            began_s = self.clock.now_s
            times = self._turn(subject, protocol.min_s / 8, protocol.min_runs // 8 + 1)
            self.subject_s += self.clock.now_s - began_s
            rounds.append((times, self._turn(reference, 0.12 * protocol.min_s / 8)))
        samples = sorted(itertools.chain.from_iterable(times for times, _ in rounds))
        paired = sorted(itertools.chain.from_iterable(times for _, times in rounds))
        level_ms = self._levels_ms[nearest]
        slowdown = _quantile(paired, 0.25) / level_ms
        ratios = [_quantile(sorted(times), 0.25) / _quantile(sorted(theirs), 0.25) for times, theirs in rounds]
        spread = float(np.std(np.log(ratios), ddof=1)) / math.sqrt(len(ratios))
        undisturbed_ms = _quantile(samples, 0.25) / slowdown
        centre = median(samples)
        half_width = 100.0 * median_half_width(samples) / centre
        noisy = half_width > protocol.half_width_percent
        return measurement(
            centre,
            file_sha256(task.architecture, task.calibration),
            self.clock.unix(),
            half_width_percent=half_width,
            quality="slowed" if slowdown > 1.1 else "noisy" if noisy else "ok",
            undisturbed_ms=undisturbed_ms,
            undisturbed_half_width_percent=100.0 * 1.96 * spread,
            reference_ms=level_ms,
        )

    def _turn(self, run: Run, seconds: float, runs: int = 1) -> list[float]:
        """Milliseconds of inferences in a row: this many, and until the time is over."""
        times, end_s = list[float](), self.clock.now_s + seconds
        while len(times) < runs or self.clock.now_s < end_s:
            start_s = self.clock.now_s
            run()
            times.append(1000.0 * (self.clock.now_s - start_s))
        return times


class DisturbedAgent(SimulatedAgent):
    """A simulated agent whose only device something slows down; a measurement takes as long as it takes."""

    bench: SimulatedBench

    def _measure(self, task: MeasureTask) -> Measurement:
        return self.bench.measure(task, lambda: self._say_progress(task))

    def _say_progress(self, task: MeasureTask) -> None:
        self._say("task", Progress(task=task.task, phase="cooling", fraction=0.0))


def _rungs(space: DesignSpace) -> Genomes:
    """From the smallest to the largest subnet, evenly in the logarithm of their work, (5, G)."""
    rng, smallest, largest = np.random.default_rng(0), space.smallest(), space.largest()
    shares = np.repeat(np.linspace(0.05, 0.95, 19), 100)[:, None]
    mixed = np.where(rng.random((len(shares), space.gene_count)) < shares, largest, smallest)
    pool = space.canonical(mixed.astype(np.int16))
    ends = space.macs(np.concatenate([smallest, largest]))
    found = [pool[np.argmin(np.abs(np.log(space.macs(pool) / macs)))] for macs in np.geomspace(*ends, 5)[1:-1]]
    return np.concatenate([smallest, np.stack(found), largest])


def _quantile(values: list[float], fraction: float) -> float:
    return float(np.quantile(values, fraction))
