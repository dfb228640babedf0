"""Rules about decided latency targets: when one is met, and how its reason is shown."""

from __future__ import annotations

from typing import Protocol

from fleetnas.coordinator.records.target_kinds import Target, TargetKind
from fleetnas.coordinator.records.target_status import TargetStatus


def meets_target(target_ms: float | None, verified_ms: float | None, typical_ms: float | None) -> bool:
    """Tell whether a re-measurement is within its target, all in milliseconds; without a target every one is.

    `verified_ms` is the re-measurement as it ran. `typical_ms` is the same at the slow-down that is typical of the run:
    a device that happened to run faster than usual must not decide. None: the typical slow-down is not known.
    """
    if verified_ms is None or target_ms is None:
        return verified_ms is not None
    return verified_ms <= target_ms and (typical_ms is None or typical_ms <= target_ms)


class Verified(Protocol):
    """A re-measured target of another kind than latency."""

    @property
    def verified_ms(self) -> float | None:
        """Median of the re-measurement, ms."""

    @property
    def value(self) -> float | None:
        """The value in the unit of the target."""

    @property
    def value_high(self) -> float | None:
        """Upper end of its interval, of a percentile."""

    @property
    def typical_value(self) -> float | None:
        """The deciding value at the typical slow-down of the run."""


def meets_kind(text: str, verified: Verified) -> bool:
    """Tell whether a re-measurement meets a target of another kind than latency, as it ran and typically.

    A percentile is met by the upper end of its interval. Accuracy is predicted: the subnet must have been re-measured.
    """
    target = Target.parse(text)
    decides = verified.value_high if target.kind is TargetKind.PERCENTILE else verified.value
    if verified.verified_ms is None or decides is None or not target.is_within(decides):
        return False
    return verified.typical_value is None or target.is_within(verified.typical_value)


def shown_reason(status: TargetStatus, reason: str) -> str:
    """Return the reason why a target is not met, marked where no subnet of the design space is fast enough."""
    return f"infeasible: {reason}" if status is TargetStatus.INFEASIBLE else reason
