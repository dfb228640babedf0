"""Rule: when a latency target is met."""

from __future__ import annotations


def meets_target(target_ms: float, verified_ms: float | None, typical_ms: float | None) -> bool:
    """Tell whether a re-measurement is within its target, all in milliseconds.

    `verified_ms` is the re-measurement as it ran. `typical_ms` is the same at the slow-down that is typical of the run:
    a device that happened to run faster than usual must not decide. None: the typical slow-down is not known.
    """
    return verified_ms is not None and verified_ms <= target_ms and (typical_ms is None or typical_ms <= target_ms)
