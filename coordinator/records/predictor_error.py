"""Held-out error of a latency predictor, and how it changed while the predictor learned."""

from __future__ import annotations

from dataclasses import dataclass

#: Held-out measurements from which on a predictor's error is worth showing.
FEWEST_HELD_OUT = 8


@dataclass(frozen=True)
class PredictorError:
    """Error of a latency predictor on measurements that it had not seen when it predicted them."""

    mape_percent: float
    """Mean absolute percentage error."""
    spearman: float | None
    """Rank correlation; None where it is undefined (fewer than two samples, or all equal)."""
    held_out: int
    """Number of measurements that the two figures are taken over."""

    @property
    def is_reliable(self) -> bool:
        """Whether the error is taken over enough measurements to be shown."""
        return self.held_out >= FEWEST_HELD_OUT


@dataclass(frozen=True)
class PredictorPoint:
    """Held-out error of the predictor after it had learned from `measurements` measurements."""

    measurements: int
    error: PredictorError
