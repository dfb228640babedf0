"""Rule: which measurements count against the budget of a device setting."""

from __future__ import annotations

from typing import Literal, TypeAlias

Purpose: TypeAlias = Literal["spread", "candidate", "sentinel", "verification"]
"""Reason for a measurement: to cover the space, to try a predicted winner, or to verify it; `sentinel`: of old runs."""


def counts_against_budget(purpose: Purpose, target_ms: float | None) -> bool:
    """Tell whether a measurement, or a failed one, uses up one unit of the budget.

    `target_ms` is the target that the task was for. A verification never counts, and neither does a candidate that
    replaces a winner that missed its target.
    """
    return purpose != "verification" and target_ms is None
