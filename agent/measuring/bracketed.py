"""Estimate latency at undisturbed speed from readings of a reference before and after, if another program runs models.

This is coarser than turns: a change within the measurement only widens the interval, by the difference of the two
readings.
"""

from __future__ import annotations

import math

from fleetnas.agent.measuring.messages import PairedTiming
from fleetnas.agent.measuring.undisturbed import LOWER_TOLERANCE, MOST_HALF_WIDTH
from fleetnas.agent.runtimes.timing import Timing

#: Readings that differ by more determine nothing about the time between them.
_MOST_DIFFERENCE = 0.15


def bracketed(
    subject: Timing, before: Timing, after: Timing, reference: str, level_ms: float, *, keep_level: bool = False
) -> PairedTiming:
    """Return the timing of a subject between two readings of a reference whose level is `level_ms`."""
    readings = (before.median_ms, after.median_ms)
    mean_ms = sum(readings) / 2
    if max(readings) < LOWER_TOLERANCE * level_ms and not keep_level:
        level_ms = mean_ms
    difference = abs(readings[1] - readings[0]) / mean_ms
    readings_error = math.hypot(before.half_width_percent, after.half_width_percent) / 2  # of their mean
    half_width = math.hypot(subject.half_width_percent, readings_error) / 100 + difference / 2
    determined = difference <= _MOST_DIFFERENCE and half_width <= MOST_HALF_WIDTH
    inside_s = sum(timing.inference_s for timing in (before, after))
    return PairedTiming(
        timing=subject.model_copy(update={"inference_s": subject.inference_s + inside_s}),
        undisturbed_ms=subject.median_ms * level_ms / mean_ms if determined else None,
        undisturbed_half_width_percent=100 * half_width,
        basis="bracketed" if determined else "none",
        reference=reference,
        reference_ms=level_ms,
        slowdown=mean_ms / level_ms,
        fastest_slowdown=min(readings) / level_ms,
        slowest_slowdown=max(readings) / level_ms,
        rounds=1,
        clean_rounds=0,
        subject_inference_s=subject.inference_s,
        reference_inference_s=inside_s,
    )
