"""Rules about decided latency targets: when one is met, and how its reason is shown."""

from __future__ import annotations

from fleetnas.coordinator.records.target_status import TargetStatus


def meets_target(target_ms: float | None, verified_ms: float | None, typical_ms: float | None) -> bool:
    """Tell whether a re-measurement is within its target, all in milliseconds; without a target every one is.

    `verified_ms` is the re-measurement as it ran. `typical_ms` is the same at the slow-down that is typical of the run:
    a device that happened to run faster than usual must not decide. None: the typical slow-down is not known.
    """
    if verified_ms is None or target_ms is None:
        return verified_ms is not None
    return verified_ms <= target_ms and (typical_ms is None or typical_ms <= target_ms)


def shown_reason(status: TargetStatus, reason: str) -> str:
    """Return the reason why a target is not met, marked where no subnet of the design space is fast enough."""
    return f"infeasible: {reason}" if status is TargetStatus.INFEASIBLE else reason
