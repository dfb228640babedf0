"""Measure a model in several fresh runtime sessions, one open at a time, and average over them.

Sessions of one model file differ by some per cent, because their memory lies elsewhere; a user's application has one of
them, drawn at random. So the latency of a model is the mean over sessions, in the logarithm, and its interval includes
the scatter between them. `docs/measuring.md` has the figures.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fleetnas.agent.host.unused_memory import return_unused_memory
from fleetnas.agent.measuring.messages import PairedTiming
from fleetnas.agent.measuring.undisturbed import Basis, median
from fleetnas.agent.runtimes.base import LoadedModel, OnBlock, TimedModel
from fleetnas.agent.runtimes.timing import MAX_KEPT_TIMES, Timing
from fleetnas.fleet_protocol.percentiles import pooled_times
from fleetnas.fleet_protocol.student_t import student_t95

#: Typical standard deviation between sessions, as a fraction: it weighs sessions whose own certainty differs.
_TYPICAL_DEVIATION = 0.02
#: From the strongest to the weakest.
_BASES: tuple[Basis, ...] = ("clean", "floor", "corrected", "bracketed", "none")
_MOST_BLOCKS = 100
#: Time after which no further session is loaded, s.
_LOADING_S = 30.0
#: Bound of a half-width, as a fraction.
_WIDEST = 10.0


@dataclass(frozen=True, slots=True)
class SessionRun:
    """Times of one session; `paired` if it alternated with references."""

    timing: Timing
    paired: PairedTiming | None
    load_ms: float


def run_sessions(
    sessions: int,
    load: Callable[[], TimedModel],
    time_model: Callable[[TimedModel, OnBlock], tuple[Timing, PairedTiming | None]],
    on_block: Callable[[float, float], None],
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[list[SessionRun], TimedModel]:
    """Load and time a model `sessions` times; return the times, and the closed model of the last session.

    Each session is closed before the next is loaded: a small device has memory for one beside the references. Its
    memory is given back, so that the next session gets pages of its own, as an application's does. A model that another
    program runs is loaded once, since each invocation of the program makes a session of its own.
    Where loading has taken longer than `_LOADING_S`, an accelerator compiles, and no further session is opened.
    `on_block` gets the fraction done of the present session and of all. Raises what `load` and `time_model` raise.
    """
    runs: list[SessionRun] = []
    model: TimedModel | None = None
    try:
        for number in range(sessions):
            load_ms = 0.0
            if isinstance(model, LoadedModel):
                if sum(run.load_ms for run in runs) > 1000 * _LOADING_S:
                    break
                model.close()
                model = None
            if model is None:
                return_unused_memory()
                begin = clock()
                model = load()
                load_ms = 1000 * (clock() - begin)

            def report(fraction: float, number: int = number) -> None:
                on_block(fraction, (number + fraction) / sessions)

            timing, paired = time_model(model, report)
            runs.append(SessionRun(timing, paired, load_ms))
    finally:
        if model is not None:
            model.close()
    assert model is not None
    return runs, model


def typical_load_ms(runs: Sequence[SessionRun]) -> float:
    """Return the median time to load a session, in ms."""
    return median([run.load_ms for run in runs if run.load_ms > 0] or [0.0])


def mean_timing(timings: Sequence[Timing], half_width_percent: float) -> Timing:
    """Return the mean over sessions of latency as it ran; `half_width_percent` is the limit of a certain one.

    Quantiles are averaged in the logarithm, since those of a mixture of sessions lie at the edge between two of them.
    Samples, of which asked percentiles are taken, are pooled, as many of each session: an application has one of them.
    """
    if len(timings) == 1:
        return timings[0]
    centre_ms = _log_mean([timing.median_ms for timing in timings])
    within = math.hypot(*(timing.half_width_percent for timing in timings)) / len(timings)
    between = 100 * _between([math.log(timing.median_ms) for timing in timings], [1.0] * len(timings))
    half_width = min(100 * _WIDEST, max(within, between))
    times_us = [value for timing in timings for value in timing.times_us]
    blocks_ms = [value for timing in timings for value in timing.block_medians_ms]
    return Timing(
        median_ms=centre_ms,
        mad_ms=sum(timing.mad_ms for timing in timings) / len(timings),
        p90_ms=_log_mean([timing.p90_ms for timing in timings]),
        min_ms=min(timing.min_ms for timing in timings),
        runs=sum(timing.runs for timing in timings),
        inner_loops=max(timing.inner_loops for timing in timings),
        half_width_percent=half_width,
        noisy=half_width > half_width_percent,
        times_us=tuple(times_us[:: math.ceil(len(times_us) / MAX_KEPT_TIMES)]),
        block_medians_ms=tuple(blocks_ms[:: math.ceil(len(blocks_ms) / _MOST_BLOCKS)]),
        mean_ms=_mean([timing.mean_ms for timing in timings]),
        samples_ms=pooled_times([timing.samples_ms for timing in timings]),
        inference_s=sum(timing.inference_s for timing in timings),
        warmup_runs=sum(timing.warmup_runs for timing in timings),
        warmup_s=sum(timing.warmup_s for timing in timings),
        # The least precise session tells how the whole ended.
        end=max(timings, key=lambda timing: timing.half_width_percent).end,
    )


def mean_paired(sessions: Sequence[PairedTiming], half_width_percent: float) -> PairedTiming:
    """Return the mean over sessions that alternated with the same reference.

    Sessions that did not determine the latency at undisturbed speed are left out of it; the others weigh by their
    certainty. The interval is that of Hartung and Knapp (Statistics in Medicine 20, 2001), at least as wide as the
    sessions' own intervals imply.
    """
    if len(sessions) == 1:
        return sessions[0]
    # The level may have been lowered between two sessions: all are stated at the last one.
    level_ms = sessions[-1].reference_ms
    undisturbed_ms, half_width = None, min(each.undisturbed_half_width_percent for each in sessions) / 100
    basis: Basis = "none"
    found = [each for each in sessions if each.undisturbed_ms is not None]
    if found:
        logs = [math.log((each.undisturbed_ms or 0.0) * level_ms / each.reference_ms) for each in found]
        errors = [each.undisturbed_half_width_percent / 100 for each in found]
        weights = [1 / (_TYPICAL_DEVIATION**2 + (error / 1.96) ** 2) for error in errors]
        total = sum(weights)
        undisturbed_ms = math.exp(sum(weight * log for weight, log in zip(weights, logs, strict=True)) / total)
        within = math.hypot(*(weight * error for weight, error in zip(weights, errors, strict=True))) / total
        # A single session says nothing of the others.
        unknown = 1.96 * _TYPICAL_DEVIATION if len(found) == 1 else 0.0
        half_width = max(math.hypot(within, unknown), _between(logs, weights))
        basis = max((each.basis for each in found), key=_BASES.index)
    return PairedTiming(
        timing=mean_timing([each.timing for each in sessions], half_width_percent),
        undisturbed_ms=undisturbed_ms,
        undisturbed_half_width_percent=100 * min(half_width, _WIDEST),
        basis=basis,
        reference=sessions[-1].reference,
        reference_ms=level_ms,
        slowdown=_log_mean([each.slowdown * each.reference_ms / level_ms for each in sessions]),
        fastest_slowdown=min(each.fastest_slowdown * each.reference_ms / level_ms for each in sessions),
        slowest_slowdown=max(each.slowest_slowdown * each.reference_ms / level_ms for each in sessions),
        rounds=sum(each.rounds for each in sessions),
        clean_rounds=sum(each.clean_rounds for each in sessions),
        subject_inference_s=sum(each.subject_inference_s for each in sessions),
        reference_inference_s=sum(each.reference_inference_s for each in sessions),
    )


def _between(logs: Sequence[float], weights: Sequence[float]) -> float:
    """Return the 95 % half-width of a weighted mean that the values' own scatter implies; 0 of a single value."""
    freedom, total = len(logs) - 1, sum(weights)
    if freedom == 0:
        return 0.0
    mean = sum(weight * log for weight, log in zip(weights, logs, strict=True)) / total
    scatter = sum(weight * (log - mean) ** 2 for weight, log in zip(weights, logs, strict=True))
    return student_t95(freedom) * math.sqrt(scatter / (freedom * total))


def _log_mean(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if len(known) == len(values) else None
