"""Held-out error of a latency predictor, and how it changed while the predictor learned."""

from __future__ import annotations

from dataclasses import dataclass

#: Held-out measurements from which on a predictor's error is worth showing.
FEWEST_HELD_OUT = 8
#: Probability of being like known devices below which a device counts as unlike them.
UNLIKE_BELOW = 0.1


@dataclass(frozen=True)
class PredictorError:
    """Error of a latency predictor on measurements that it had not seen when it predicted them."""

    mape_percent: float
    """Mean absolute percentage error."""
    spearman: float | None
    """Rank correlation; None where it is undefined (fewer than two samples, or all equal)."""
    held_out: int
    """Number of measurements that the two figures are taken over."""
    transfer_weight: float | None = None
    """Probability that the device is like known ones, 0 to 1; None without a prior that was learned from those."""

    @property
    def is_reliable(self) -> bool:
        """Whether the error is taken over enough measurements to be shown."""
        return self.held_out >= FEWEST_HELD_OUT

    @property
    def is_unlike_known(self) -> bool:
        """Whether the measurements show that the device is unlike all that its prior was learned from."""
        return self.transfer_weight is not None and self.transfer_weight < UNLIKE_BELOW


@dataclass(frozen=True)
class PredictorPoint:
    """Held-out error of the predictor after it had learned from `measurements` measurements."""

    measurements: int
    error: PredictorError

    def row(self) -> list[float | None]:
        """Return the values that the store keeps: measurements, MAPE, rank correlation, held out, transfer weight."""
        error = self.error
        return [self.measurements, error.mape_percent, error.spearman, error.held_out, error.transfer_weight]
