"""Judge re-measurements of targets of other kinds than latency, and explain the misses."""

from __future__ import annotations

import math

from fleetnas.coordinator.records.target_kinds import Target, TargetKind, three_digits
from fleetnas.coordinator.tuning.judgement import Judgement, judge
from fleetnas.coordinator.tuning.miss_reasons import GivenUpReason
from fleetnas.coordinator.tuning.subnet_observations import Run
from fleetnas.coordinator.tuning.target_costs import cost_of
from fleetnas.coordinator.tuning.target_state import TargetState
from fleetnas.fleet_protocol.percentiles import runs_needed

#: Room that advice leaves above the least cost that was found.
_ADVISED = 1.05


def judge_cost(target: Target, run: Run, cautious_ms: float | None) -> Judgement:
    """Compare a re-measurement with its target; `cautious_ms` is its latency at the typical speed, with caution.

    The cost at the typical speed is the cost as it ran, times typical latency over latency as it ran. The accuracy that
    is to be kept is predicted: every re-measurement of such a subnet is within the target.
    """
    if target.kind is TargetKind.ACCURACY:
        return Judgement.WITHIN
    cost = cost_of(run, target)
    if cost is None or cost.decides is None:
        return Judgement.BEYOND
    typical = None if cautious_ms is None else cost.decides * cautious_ms / run.median_ms
    return judge(target.most_cost, cost.decides, typical, noisy=run.noisy)


def untold_reason(state: TargetState, run: Run) -> str:
    """Explain a re-measurement that does not tell what its target is about; empty where it does."""
    target = state.target
    if target is None or target.kind is TargetKind.ACCURACY:
        return ""
    cost = cost_of(run, target)
    if cost is None:
        return untold(target)
    if cost.decides is None:
        return (
            f"p{target.percentile:g} takes {runs_needed(target.percentile)} timed runs for its interval, and fewer fit "
            "into one measurement; raise --deadline, or ask for a lower percentile"
        )
    return ""


def untold(target: Target) -> str:
    """Explain a target that no measurement of a device setting tells about."""
    if target.kind is TargetKind.PERCENTILE:
        return "its agent reports no percentiles of single run times; update fleetnas on the device"
    if target.kind is TargetKind.RATE:
        return "its agent reports no mean of run times; update fleetnas on the device"
    return "the device tells no energy (no power meter that can be read: `fleetnas-agent doctor`); ask for latency"


def beyond(target: Target, run: Run, typical_ms: float | None) -> str:
    """Explain a re-measurement beyond its target."""
    cost = cost_of(run, target)
    if cost is None or cost.decides is None:
        return untold(target)
    ran = _shown(target, cost.decides)
    name = f"the upper end of p{target.percentile:g}" if target.kind is TargetKind.PERCENTILE else "it"
    if cost.decides <= target.most_cost and typical_ms is not None:
        typical = _shown(target, cost.decides * typical_ms / run.median_ms)
        return f"within it when re-measured, {name} at {ran}, while the device was faster than typically: {typical}"
    return f"not within it when re-measured: {name} was at {ran}, the median at {three_digits(run.median_ms)} ms"


def given_up_kind(target: Target, least: float, name: str, reason: str) -> GivenUpReason:
    """Explain a target that was given up; `least` is the least cost found, which the subnet `name` is near to."""
    if target.kind is TargetKind.ACCURACY:
        return GivenUpReason(f"no subnet was measured that keeps {target.value:g} %; raise --budget, or lower it")
    if not math.isfinite(least):
        return GivenUpReason(untold(target))
    if least <= target.most_cost:
        return GivenUpReason(
            reason
            or f"the fastest subnet found ({name}) is expected at {_shown(target, least)}, within it, and no "
            "re-measurement showed that; keep the device free of other work, and search again"
        )
    ask = least * _ADVISED
    word = "at most" if target.kind is TargetKind.RATE else "at least"
    return GivenUpReason(
        f"the fastest subnet found ({name}) is expected at {_shown(target, least)}; ask for {word} "
        f"{_shown(target, ask)}",
        too_fast=least > target.most_cost,
    )


def _shown(target: Target, cost: float) -> str:
    return f"{three_digits(target.shown_value(cost))} {target.unit}"
