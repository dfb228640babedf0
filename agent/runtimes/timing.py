"""Time one model: warm-up, then blocks of samples until their median is certain enough.

Everything here is plain Python on lists, with the clock passed in, so that synthetic clocks test it exactly.
Sources of the procedure: `benchmark_model` of LiteRT (least runs and least time), pyperf (inner loops, raw values
kept), MLPerf (steady state before timing); `fleetnas.agent.runtimes.stopping` names those of the end.
`docs/measuring.md` describes it for users.
"""

from __future__ import annotations

import gc
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from pydantic import Field

from fleetnas.agent.runtimes.stopping import SEQUENTIAL_FACTOR, End, critical_value, end_at_look, next_look
from fleetnas.agent.runtimes.warm_up import WarmUp, warm_up
from fleetnas.device_profiles.quantities import DurationMs, HalfWidthPercent, Microseconds, Milliseconds, Seconds
from fleetnas.fleet_protocol.messages import MeasurementProtocol, Message

#: A sample shorter than this is stretched by inner loops. Reading the clock twice costs about 0.2 us on a server
#: and 2 us on a Pi Zero: 0.2 % of this at worst. Longer samples are single inferences, as an application sees them.
MIN_SAMPLE_MS = 1.0
#: Raw times kept; where there are more, every k-th. A result with all of them stays below a kilobyte.
MAX_KEPT_TIMES = 20
#: Batches of samples in order whose medians' scatter gives an interval, and samples in each, at least.
_BATCHES, _LEAST_BATCHES, _BATCH_SAMPLES = 8, 4, 3
#: A block lasts at least this share of the time so far, so that long measurements do not have too many of them.
_BLOCK_SHARE, MAX_BLOCKS = 1 / 16, 80
#: Two-sided 95 % quantile of the standard normal distribution.
_Z95 = 1.959964


class Timing(Message):
    """Times of one model; the fields mean the same as in `fleetnas.fleet_protocol.messages.Measurement`."""

    median_ms: Milliseconds
    mad_ms: DurationMs
    p90_ms: Milliseconds
    min_ms: Milliseconds
    runs: int = Field(ge=1, le=2**31 - 1)
    inner_loops: int = Field(ge=1, le=2**31 - 1)
    half_width_percent: HalfWidthPercent
    noisy: bool
    times_us: tuple[Microseconds, ...] = Field(max_length=512)
    block_medians_ms: tuple[Milliseconds, ...] = Field(max_length=100)
    mean_ms: Milliseconds | None = Field(default=None, description="of all timed inferences")
    samples_ms: tuple[float, ...] = Field(
        default=(), exclude=True, description="all samples, where percentiles are asked for"
    )
    inference_s: Seconds = Field(description="time inside inference runs, warm-up included")
    warmup_runs: int = Field(default=0, ge=0, le=2**31 - 1)
    warmup_s: Seconds = Field(default=0.0, description="time inside the runs of the warm-up")
    end: End | None = Field(default=None, description="why timing ended; None if another program decided")


def measure(
    run: Callable[[], object],
    protocol: MeasurementProtocol,
    *,
    clock_ns: Callable[[], int] = time.perf_counter_ns,
    on_block: Callable[[float], None] = lambda fraction: None,
) -> Timing:
    """Time `run` by `protocol`; one call of `run` is one inference, and a sample lasts `MIN_SAMPLE_MS` or longer.

    Ends when the median is as certain as the protocol asks, after its least time and runs and within its longest time;
    a precision that is out of reach gets as much time again, and is marked `noisy`. `on_block` is called between blocks
    with the fraction done, never inside one.
    """
    with no_garbage_collection():
        warm = warm_up(run, protocol, clock_ns)
        inner = inner_loops(warm.inference_ns, single=bool(protocol.percentiles))
        timed = _Blocks(run, protocol, inner, clock_ns)
        while timed.end is None:
            on_block(timed.fraction)
            timed.take()
        on_block(1.0)
        timing = summarise(timed.blocks_ns, inner, protocol.half_width_percent, timed.spent_ns, warm)
        timing = with_samples(timing, timed.blocks_ns, protocol)
        half_width = timed.half_width_percent()
        noisy = half_width > protocol.half_width_percent
        return timing.model_copy(update={"half_width_percent": half_width, "noisy": noisy, "end": timed.end})


def inner_loops(inference_ns: float, *, single: bool) -> int:
    """Return the inferences of one sample: a `single` one where percentiles of run times are asked for."""
    return 1 if single else max(1, math.ceil(1e6 * MIN_SAMPLE_MS / inference_ns))


def with_samples(timing: Timing, blocks_ns: Sequence[Sequence[int]], protocol: MeasurementProtocol) -> Timing:
    """Return a timing with all its samples, ns each, where percentiles are asked for."""
    if not protocol.percentiles:
        return timing
    return timing.model_copy(update={"samples_ms": tuple(sample / 1e6 for block in blocks_ns for sample in block)})


class _Blocks:
    """Blocks of samples of one model, and when there are enough."""

    def __init__(
        self, run: Callable[[], object], protocol: MeasurementProtocol, inner: int, clock_ns: Callable[[], int]
    ) -> None:
        self._run, self._protocol, self._inner, self._clock_ns = run, protocol, inner, clock_ns
        self.blocks_ns: list[list[int]] = []
        self.end: End | None = None
        self._look = protocol.blocks
        self._begin_ns = clock_ns()
        self._least_ns = 0  #: time of the least number of blocks
        self._end_ns = self._begin_ns

    @property
    def fraction(self) -> float:
        """Fraction done of a measurement that needs no more than the least number of blocks, below 1."""
        return min(0.99, len(self.blocks_ns) / self._protocol.blocks)

    @property
    def spent_ns(self) -> int:
        """Time inside the samples, ns."""
        return sum(map(sum, self.blocks_ns))

    def take(self) -> None:
        """Take one block, and decide whether it was the last."""
        protocol, runs = self._protocol, math.ceil(self._protocol.min_runs / self._protocol.blocks)
        elapsed_ns, most_ns = self._end_ns - self._begin_ns, protocol.max_s * 1e9
        block_ns = max(protocol.min_s * 1e9 / protocol.blocks, _BLOCK_SHARE * elapsed_ns)
        last_ns = most_ns / protocol.blocks
        if len(self.blocks_ns) >= protocol.blocks:
            last_ns = min(last_ns, most_ns - elapsed_ns)
        self._time_block(runs, block_ns, last_ns)
        count = len(self.blocks_ns)
        if count == protocol.blocks:
            self._least_ns = self._end_ns - self._begin_ns
        elapsed_ns = self._end_ns - self._begin_ns
        if count >= self._look or elapsed_ns >= most_ns:
            self._look = next_look(count)
            self.end = self._decide(elapsed_ns, most_ns)

    def _time_block(self, least: int, block_ns: float, last_ns: float) -> None:
        block: list[int] = []
        run, clock_ns, loops = self._run, self._clock_ns, range(self._inner)
        begin = clock_ns()
        while True:
            start = clock_ns()
            for _ in loops:
                run()
            end = clock_ns()
            block.append(max(1, end - start))
            elapsed = end - begin
            if elapsed >= last_ns or (len(block) >= least and elapsed >= block_ns):
                break
        self.blocks_ns.append(block)
        self._end_ns = end

    def _decide(self, elapsed_ns: float, most_ns: float) -> End | None:
        if len(self.blocks_ns) >= MAX_BLOCKS:
            most_ns = elapsed_ns
        asked = self._protocol.half_width_percent
        return end_at_look(self.half_width_percent(), asked, elapsed_ns, self._least_ns, most_ns)

    def half_width_percent(self) -> float:
        """Return the 95 % half-width of the median of all samples, in percent of it, valid at every look.

        The larger of two: from order statistics, as if samples were independent; and from the scatter of the medians of
        batches in order, which also shows a speed that wanders.
        """
        samples = [sample for block in self.blocks_ns for sample in block]
        ordered = sorted(samples)
        half_width = median_half_width(ordered, SEQUENTIAL_FACTOR * _Z95)
        batches = min(_BATCHES, len(samples) // _BATCH_SAMPLES)
        if batches >= _LEAST_BATCHES:
            edges = [index * len(samples) // batches for index in range(batches + 1)]
            medians = [median(sorted(samples[a:b])) for a, b in itertools.pairwise(edges)]
            error = statistics.stdev(medians) / math.sqrt(batches)
            half_width = max(half_width, critical_value(batches) * error)
        return 100 * half_width / median(ordered)


def summarise(
    blocks_ns: Sequence[Sequence[int]],
    inner_loops: int,
    half_width_percent: float,
    inference_ns: int,
    warm: WarmUp | None = None,
) -> Timing:
    """Return the statistics of samples of `inner_loops` inferences each, in ns, per block in order.

    `inference_ns` is the time inside inference without that of the warm-up.
    """
    times_ms = [sample / inner_loops / 1e6 for block in blocks_ns for sample in block]
    ordered = sorted(times_ms)
    centre = median(ordered)
    half_width = 100 * median_half_width(ordered) / centre
    step = math.ceil(len(times_ms) / MAX_KEPT_TIMES)
    return Timing(
        median_ms=centre,
        mad_ms=median(sorted(abs(value - centre) for value in ordered)),
        p90_ms=_quantile(ordered, 0.9),
        min_ms=ordered[0],
        runs=len(ordered),
        inner_loops=inner_loops,
        half_width_percent=half_width,
        noisy=half_width > half_width_percent,
        times_us=tuple(float(f"{1000 * value:.5g}") for value in times_ms[::step]),
        block_medians_ms=tuple(median(sorted(block)) / inner_loops / 1e6 for block in blocks_ns),
        mean_ms=math.fsum(ordered) / len(ordered),
        inference_s=(inference_ns + (warm.spent_ns if warm is not None else 0)) / 1e9,
        warmup_runs=warm.runs if warm is not None else 0,
        warmup_s=warm.spent_ns / 1e9 if warm is not None else 0.0,
    )


def median(ordered: Sequence[float]) -> float:
    """Return the median of an ascending sequence."""
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def median_half_width(ordered: Sequence[float], z: float = _Z95) -> float:
    """Return half the width of the 95 % confidence interval of the median of an ascending sequence.

    Distribution-free, from order statistics: the number of samples below the true median is binomial, so the
    interval from the r-th smallest to the r-th largest covers it with a probability that depends on r alone. Source:
    Conover, Practical Nonparametric Statistics, 3rd ed., 3.2. Below six samples no pair covers 95 %, and the whole
    range is taken. A larger quantile `z` of the normal distribution widens the interval.
    """
    n = len(ordered)
    rank = max(1, math.floor((n + 1 - z * math.sqrt(n)) / 2))
    return (ordered[n - rank] - ordered[rank - 1]) / 2


def _quantile(ordered: Sequence[float], fraction: float) -> float:
    position = fraction * (len(ordered) - 1)
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Keep the garbage collector from running inside."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
