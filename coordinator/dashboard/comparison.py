"""Two runs side by side: facts, targets, and what makes their figures incomparable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fleetnas.coordinator.dashboard.run_state import RunState
from fleetnas.coordinator.records.snapshot import TargetSnapshot
from fleetnas.coordinator.records.targets import target_name
from fleetnas.coordinator.view import wording

Pair = tuple[RunState, RunState]
#: Automatic targets of two runs differ a little; up to this, relative, they are compared.
_SAME_TARGET = 0.05


@dataclass(frozen=True)
class ComparedTarget:
    """One target of one device setting in both runs; None where a run has no such target."""

    label: str
    target: str
    pair: tuple[TargetSnapshot | None, TargetSnapshot | None]

    @property
    def gain(self) -> float | None:
        """Accuracy of the second run less that of the first, percentage points; None unless both met the target."""
        first, second = self.pair
        if first is None or second is None or not (first.met and second.met):
            return None
        # Accuracies of one kind are compared: evaluated with evaluated, else predicted with predicted.
        if first.evaluated_accuracy is not None and second.evaluated_accuracy is not None:
            return 100 * (second.evaluated_accuracy - first.evaluated_accuracy)
        if first.accuracy is not None and second.accuracy is not None:
            return 100 * (second.accuracy - first.accuracy)
        return None


def compared_targets(pair: Pair) -> list[ComparedTarget]:
    """Return every target of both runs, by device setting; targets of about the same latency stand in one row."""
    first, second = ({each.label: each.targets for each in state.snapshot.devices} for state in pair)
    rows = []
    for label in sorted({*first, *second}):
        for one, other in _paired(first.get(label, ()), second.get(label, ())):
            texts = [target_name(each.target_ms, each.subnet, each.target) for each in (one, other) if each is not None]
            rows.append(ComparedTarget(label, " / ".join(dict.fromkeys(texts)) or "–", (one, other)))
    return rows


def _paired(
    first: Sequence[TargetSnapshot], second: Sequence[TargetSnapshot]
) -> list[tuple[TargetSnapshot | None, TargetSnapshot | None]]:
    """Pair each target with the nearest of the other run that asks for about the same, and is in no other pair."""
    left = list(second)
    pairs: list[tuple[TargetSnapshot | None, TargetSnapshot | None]] = []
    for one in first:
        alike = [other for other in left if _asks_the_same(one, other)]
        other = min(alike, key=lambda each: abs((each.target_ms or 0.0) - (one.target_ms or 0.0)), default=None)
        if other is not None:
            left.remove(other)
        pairs.append((one, other))
    pairs += [(None, other) for other in left]
    return sorted(pairs, key=lambda found: next((each.target_ms or 0.0 for each in found if each is not None), 0.0))


def _asks_the_same(one: TargetSnapshot, other: TargetSnapshot) -> bool:
    if one.subnet != other.subnet:
        return False
    if one.target or other.target:
        return one.target == other.target
    if one.target_ms is None or other.target_ms is None:
        return one.target_ms is other.target_ms
    return abs(one.target_ms - other.target_ms) <= _SAME_TARGET * one.target_ms


def compared_facts(pair: Pair) -> list[tuple[str, tuple[str, str]]]:
    """Return what is known of each run as a whole, as rows of a table."""
    rows = [_facts(state) for state in pair]
    return [(label, (rows[0][label], rows[1][label])) for label in rows[0]]


def _facts(state: RunState) -> dict[str, str]:
    plan = state.plan
    took = "–" if state.finished_unix_s is None else wording.elapsed(state.finished_unix_s - state.snapshot.started_s)
    return {
        "Status": str(state.status),
        "Targets": wording.targets_met(state.totals),
        "Supernet": state.snapshot.supernet,
        "Data set": state.dataset or "–",
        "Search": "–"
        if plan is None
        else f"{plan.method}, targets {plan.targets}, budget {plan.budget}, seed {plan.seed}",
        "Measurements": f"{state.measurements} to search",
        "Took": took,
    }


def remarks_on(pair: Pair) -> list[str]:
    """Return why figures of two runs are not to be compared; empty where they are."""
    first, second = pair
    remarks = []
    if first.dataset != second.dataset:
        data = [state.dataset or "not known" for state in pair]
        remarks.append(f"the accuracies are about different data: {' and '.join(data)}")
    elif first.bundle_sha256 != second.bundle_sha256:
        remarks.append("the runs searched different supernets: predicted accuracies have different predictors")
    if not {d.label for d in first.snapshot.devices} & {d.label for d in second.snapshot.devices}:
        remarks.append("the runs have no device setting in common")
    return remarks + _other_questions(pair)


def _other_questions(pair: Pair) -> list[str]:
    """Return in which ways equal targets of the two runs ask for different things."""
    plans = [state.plan for state in pair if state.plan is not None]
    remarks = []
    if len({plan.conditions for plan in plans}) > 1:
        conditions = " and ".join(plan.conditions for plan in plans)
        remarks.append(f"the latencies were measured under different conditions: {conditions}")
    if len({plan.bounds for plan in plans}) > 1:
        bounds = " and ".join(str(plan.bounds) or "none" for plan in plans)
        remarks.append(f"the winners have different bounds: {bounds}")
    return remarks
