"""Read the output of Google's `benchmark_model`, and summarise it as a timing."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from fleetnas.agent.runtimes.timing import Timing
from fleetnas.fleet_protocol.errors import RuntimeUnavailableError

_STATISTICS = re.compile(r"\bcount=(\d+)\b(.*)")
_FIELD = re.compile(r"(\w+)=([0-9.eE+-]+)")
#: Efficiency of the median on normal samples: its standard error is this times the mean's (pi / 2, square root).
_MEDIAN_ERROR = math.sqrt(math.pi / 2)
_Z95 = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True, slots=True)
class ToolStatistics:
    """Statistics of the timed runs of one invocation, in microseconds."""

    count: int
    first_us: float
    min_us: float
    max_us: float
    mean_us: float
    deviation_us: float
    #: Recent versions only.
    median_us: float | None
    warm_up_us: float


def parse_output(text: str) -> ToolStatistics:
    """Return the statistics in the tool's output; `RuntimeUnavailableError` with its last line if there are none.

    The first `count=` line is the warm-up's, the last the timed runs'; with one run the tool leaves fields out.
    """
    found = [(int(count), dict(_FIELD.findall(rest))) for count, rest in _STATISTICS.findall(text)]
    if not found:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        raise RuntimeUnavailableError(
            f"benchmark_model gave no timings; it ended with: {lines[-1][:200] if lines else 'nothing'}"
        )
    count, fields = found[-1]
    try:
        values = {name: float(value) for name, value in fields.items()}
        latest = values.get("curr", values.get("first", 0.0))
        warm_count, warm_fields = found[0]
        warm_mean = float(warm_fields.get("avg") or warm_fields.get("curr") or 0.0)
        statistics = ToolStatistics(
            count=count,
            first_us=values.get("first", latest),
            min_us=values.get("min", latest),
            max_us=values.get("max", latest),
            mean_us=values.get("avg", latest),
            deviation_us=values.get("std", 0.0),
            median_us=values.get("median"),
            warm_up_us=warm_count * warm_mean if len(found) > 1 else 0.0,
        )
    except ValueError as error:
        raise RuntimeUnavailableError(f"benchmark_model printed a number that is none: {error}") from error
    if statistics.count < 1 or statistics.min_us <= 0 or statistics.mean_us <= 0:
        raise RuntimeUnavailableError(f"benchmark_model printed impossible timings: count={count} {fields}")
    return statistics


def summarise_blocks(blocks: Sequence[ToolStatistics], half_width_percent: float) -> Timing:
    """Return a timing from the tool's summaries, one per block; `half_width_percent` is the limit of a certain median.

    The tool prints moments instead of samples. If it prints no median, its mean is used. The half-width is the larger
    of the one that the deviation implies for normal samples, and of half the blocks' range.
    """
    centres = sorted((block.median_us if block.median_us is not None else block.mean_us) / 1000 for block in blocks)
    centre = centres[len(centres) // 2] if len(centres) % 2 else sum(centres[len(centres) // 2 - 1 :][:2]) / 2
    count = sum(block.count for block in blocks)
    deviation_ms = math.sqrt(sum(block.count * block.deviation_us**2 for block in blocks) / count) / 1000
    half_width_ms = max(_Z95 * _MEDIAN_ERROR * deviation_ms / math.sqrt(count), (centres[-1] - centres[0]) / 2)
    half_width = 100 * half_width_ms / centre
    in_order = [block.median_us if block.median_us is not None else block.mean_us for block in blocks]
    return Timing(
        median_ms=centre,
        # For normal samples the median absolute deviation is 0.6745 standard deviations, the 90th percentile 1.2816.
        mad_ms=0.6745 * deviation_ms,
        p90_ms=min(centre + 1.2816 * deviation_ms, max(block.max_us for block in blocks) / 1000),
        min_ms=min(block.min_us for block in blocks) / 1000,
        runs=count,
        inner_loops=1,
        half_width_percent=half_width,
        noisy=half_width > half_width_percent,
        times_us=tuple(in_order),
        block_medians_ms=tuple(value / 1000 for value in in_order),
        mean_ms=sum(block.count * block.mean_us for block in blocks) / count / 1000,
        inference_s=sum(block.count * block.mean_us + block.warm_up_us for block in blocks) / 1e6,
    )
