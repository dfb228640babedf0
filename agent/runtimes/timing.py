"""Time one model: warm-up, blocks of samples, and the statistics that tell whether their median is certain enough.

Everything here is plain Python on lists, with the clock passed in, so that synthetic clocks test it exactly.
Sources of the procedure: `benchmark_model` of LiteRT (warm-up by runs and by time, then both again), pyperf (inner
loops, raw values kept), MLPerf (steady state before timing). `docs/measuring.md` describes it for users.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from pydantic import Field

from fleetnas.device_profiles.quantities import DurationMs, HalfWidthPercent, Microseconds, Milliseconds, Seconds
from fleetnas.fleet_protocol.messages import MeasurementProtocol, Message

#: A sample shorter than this is stretched by inner loops. Reading the clock twice costs about 0.2 us on a server
#: and 2 us on a Pi Zero: 0.2 % of this at worst. Longer samples are single inferences, as an application sees them.
MIN_SAMPLE_MS = 1.0
#: Raw times kept; where there are more, every k-th. A result with all of them stays below a kilobyte.
MAX_KEPT_TIMES = 20
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
    inference_s: Seconds = Field(description="time inside inference runs, warm-up included")


def measure(
    run: Callable[[], object],
    protocol: MeasurementProtocol,
    *,
    clock_ns: Callable[[], int] = time.perf_counter_ns,
    on_block: Callable[[float], None] = lambda fraction: None,
) -> Timing:
    """Time `run` by `protocol`; one call of `run` is one inference, and a sample lasts `MIN_SAMPLE_MS` or longer.

    `on_block` is called between blocks with the fraction done, never inside one. A median that is less certain than the
    protocol asks for is measured once more, and the better of the two is kept, marked `noisy` if it still is.
    """
    with no_garbage_collection():
        warm_ns, estimate_ns = warm_up(run, protocol, clock_ns)
        inner = max(1, math.ceil(1e6 * MIN_SAMPLE_MS / estimate_ns))
        first = _timed_blocks(run, protocol, inner, clock_ns, on_block)
        inference_ns = warm_ns + sum(map(sum, first))
        timing = summarise(first, inner, protocol.half_width_percent, inference_ns)
        if timing.noisy:
            second = _timed_blocks(run, protocol, inner, clock_ns, on_block)
            inference_ns += sum(map(sum, second))
            again = summarise(second, inner, protocol.half_width_percent, inference_ns)
            better = min(timing, again, key=lambda candidate: candidate.half_width_percent)
            timing = better.model_copy(update={"inference_s": again.inference_s})
        return timing


def summarise(
    blocks_ns: Sequence[Sequence[int]], inner_loops: int, half_width_percent: float, inference_ns: int
) -> Timing:
    """Return the statistics of samples of `inner_loops` inferences each, in ns, per block in order."""
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
        inference_s=inference_ns / 1e9,
    )


def median(ordered: Sequence[float]) -> float:
    """Return the median of an ascending sequence."""
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def median_half_width(ordered: Sequence[float]) -> float:
    """Return half the width of the 95 % confidence interval of the median of an ascending sequence.

    Distribution-free, from order statistics: the number of samples below the true median is binomial, so the
    interval from the r-th smallest to the r-th largest covers it with a probability that depends on r alone. Source:
    Conover, Practical Nonparametric Statistics, 3rd ed., 3.2. Below six samples no pair covers 95 %, and the whole
    range is taken.
    """
    n = len(ordered)
    rank = max(1, math.floor((n + 1 - _Z95 * math.sqrt(n)) / 2))
    return (ordered[n - rank] - ordered[rank - 1]) / 2


def _quantile(ordered: Sequence[float], fraction: float) -> float:
    position = fraction * (len(ordered) - 1)
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])


def warm_up(run: Callable[[], object], protocol: MeasurementProtocol, clock_ns: Callable[[], int]) -> tuple[int, float]:
    """Run for at least the warm-up runs and the warm-up time; return total time and time per run, in ns."""
    warm_ns = round(protocol.warmup_s * 1e9)
    recent: list[int] = []
    begin = clock_ns()
    while True:
        start = clock_ns()
        run()
        end = clock_ns()
        recent.append(max(1, end - start))
        if len(recent) >= protocol.warmup_runs and end - begin >= warm_ns:
            break
    # The first runs allocate and fault pages in; the estimate is taken from the later half.
    settled = sorted(recent[len(recent) // 2 :])
    return sum(recent), median(settled)


def _timed_blocks(
    run: Callable[[], object],
    protocol: MeasurementProtocol,
    inner: int,
    clock_ns: Callable[[], int],
    on_block: Callable[[float], None],
) -> list[list[int]]:
    blocks: list[list[int]] = []
    runs_per_block = math.ceil(protocol.min_runs / protocol.blocks)
    ns_per_block = protocol.min_s * 1e9 / protocol.blocks
    last_ns = protocol.max_s * 1e9 / protocol.blocks
    loops = range(inner)
    for number in range(protocol.blocks):
        on_block(number / protocol.blocks)
        block: list[int] = []
        begin = clock_ns()
        while True:
            start = clock_ns()
            for _ in loops:
                run()
            end = clock_ns()
            block.append(max(1, end - start))
            elapsed = end - begin
            if elapsed >= last_ns or (len(block) >= runs_per_block and elapsed >= ns_per_block):
                break
        blocks.append(block)
    on_block(1.0)
    return blocks


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
