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
    return judge(target_ms, run.median_ms, typical_ms, noisy=run.noisy)


def judge(most: float, ran: float, typical: float | None, *, noisy: bool) -> Judgement:
    """Compare a latency or another cost with the most that is allowed: as it ran, and at the typical speed."""
    ran_within = ran <= most
    typically_within = typical is None or typical <= most
    if ran_within and typically_within:
        return Judgement.WITHIN
    return Judgement.DISTURBED if not ran_within and (typically_within or noisy) else Judgement.BEYOND
