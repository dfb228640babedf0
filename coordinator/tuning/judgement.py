"""The rule by which one re-measurement decides a target, the same for winners and for given subnets."""

from __future__ import annotations

from enum import Enum

from fleetnas.coordinator.tuning.subnet_observations import Run

#: Re-measurements of one target that a disturbed device may spoil.
DISTURBED_TRIES = 3


class Judgement(Enum):
    """Result of comparing a re-measurement with its target."""

    WITHIN = "within"
    """As it ran, and at the typical speed of the run where that is known."""
    DISTURBED = "disturbed"
    """Beyond it as it ran, in a moment that says more about the device than about the subnet."""
    BEYOND = "beyond"


def judge_run(target_ms: float, run: Run, typical_ms: float | None) -> Judgement:
    """Compare a re-measurement with its target, ms; `typical_ms` is the latency at the typical speed of the run."""
    ran_within = run.median_ms <= target_ms
    typically_within = typical_ms is None or typical_ms <= target_ms
    if ran_within and typically_within:
        return Judgement.WITHIN
    return Judgement.DISTURBED if not ran_within and (typically_within or run.noisy) else Judgement.BEYOND
