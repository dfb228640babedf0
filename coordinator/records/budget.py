"""Purposes of measurements, and the rule which of them count against the budget of a device setting."""

from __future__ import annotations

from typing import Literal, TypeAlias

Purpose: TypeAlias = Literal["initial-design", "candidate", "verification"]
"""Reason for a measurement: to cover the design space, to try a predicted winner, or to verify one. It is stored."""


def counts_against_budget(purpose: Purpose, target_ms: float | None, target: str = "") -> bool:
    """Tell whether a measurement, or a failed one, uses up one unit of the budget.

    `target_ms` and `target` are the target that the task was for. A verification of a target's winner never counts, and
    neither does a candidate that replaces a winner that missed its target. A verification for no target is the
    measurement of a subnet that the user gave, and counts. Earlier versions stored no verification without its target.
    """
    return target_ms is None and not target


def shown_purpose(purpose: Purpose) -> str:
    """Return the word that views show for a purpose: `exploring` for a subnet of the initial design."""
    return "exploring" if purpose == "initial-design" else purpose
