"""Name the targets of results, and find the target that a comparison is about."""

from __future__ import annotations

from fleetnas.coordinator.records.targets import target_name
from fleetnas.coordinator.report.results import ComparisonResult, TargetResult


def name_of(target: TargetResult) -> str:
    """Return the name of a target, as `20 ms` or `p95 20 ms`, or of a given subnet; each of a device has its own."""
    return target_name(target.target_ms, target.subnet or "", target.target)


def is_about(comparison: ComparisonResult, target: TargetResult) -> bool:
    """Whether a comparison is about this target of its device setting."""
    names = ("target_ms", "target", "subnet")
    return all(getattr(comparison, name) == getattr(target, name) for name in names)
