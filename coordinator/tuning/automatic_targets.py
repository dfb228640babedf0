"""Automatic targets of one device setting: even steps over the range of latencies of its subnets in this run."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fleetnas.coordinator.records.target_kinds import three_digits
from fleetnas.coordinator.records.targets import (
    LEAST_APART,
    ResolvedTargets,
    TargetRequest,
    lowest_target,
    significant,
)
from fleetnas.coordinator.search.problem import AccuracyModel
from fleetnas.coordinator.tuning.proposal import Genome, TargetSolver
from fleetnas.coordinator.tuning.setting_latency import SettingLatency
from fleetnas.coordinator.tuning.target_state import TargetState, with_latencies

#: Targets end where accuracy stops growing: probes of the predicted front, the difference of accuracy that does not
#: count (a fraction), and the room that the last target leaves above.
_PROBES = 12
_SAME_ACCURACY = 0.001
_ROOM_ABOVE = 1.08
#: An end of the range that was not measured is known where its prediction's standard deviation is below this, relative.
_KNOWN_END = 0.25
#: Where no speed is known, a range narrower than this says nothing.
_LEAST_RANGE = 1.05
#: Targets stay where they are while the typical speed is within this of the one that they were made for, relative.
_SAME_SPEED = 0.03
#: Two targets that replace others are apart by this factor: rounded to three digits, they still are by `LEAST_APART`.
_APART = 1.01 * LEAST_APART
#: How often targets that are out of reach are replaced: once may be too early on a device that goes on becoming slower.
_MOST_TIMES = 3


class AutomaticTargets:
    """Resolves `auto:N`; a function of the initial design and of all measurements."""

    def __init__(
        self,
        request: TargetRequest,
        latency: SettingLatency,
        ends: Sequence[Genome],
        solver: TargetSolver,
        accuracy: AccuracyModel,
        seed: int,
    ) -> None:
        """`ends` are the smallest and the largest subnet."""
        self._request, self._latency, self._ends = request, latency, list(ends)
        self._solver, self._accuracy, self._seed = solver, accuracy, seed
        self.unknown = ""
        """Reason why the range is unknown; empty where it is known."""
        self.note = ""
        """Why there are fewer targets than were asked for, or others than at first."""
        self._first = ResolvedTargets(())
        self._first_slowdown = self._slowdown_before = 1.0  # after the initial design, and at the latest choice
        self._times_raised = 0
        self._out_of_reach: list[TargetState] = []

    def begin(self) -> None:
        """Take the first range, once the initial design is measured."""
        enough = self._find_enough()
        if enough is not None:
            self._ends.append(enough)
        self._has_enough = enough is not None
        self._first_slowdown = self._slowdown_before = self._slowdown()
        self._first = self._resolve()

    def now(self, states: Sequence[TargetState]) -> list[TargetState]:
        """Return the targets with the automatic ones at the present typical speed; without them if it is unknown."""
        if not self._request.automatic:
            return list(states)
        changed = abs(self._slowdown() / self._first_slowdown - 1.0) > _SAME_SPEED
        resolved = self._resolve() if changed else self._first
        self.note = resolved.note
        self._slowdown_before = self._slowdown() if changed else self._first_slowdown
        self._out_of_reach = []
        return with_latencies(states, resolved.targets_ms)

    def within_reach(self, states: list[TargetState], told_ms: float | None = None) -> list[TargetState]:
        """Replace targets that were missed because the device became slower than when they were chosen.

        Others take their place, evenly from the lowest that the fastest subnet found leaves room for up to the next
        target. Where there is no room for them, they stay missed, and the very same list is returned. Where a run is
        told again, `told_ms` is the target that it had: boards of a class may have answered in another order.
        """
        table = self._latency.observations.table(unsure=True)
        slower = self._slowdown() > self._slowdown_before
        if self._times_raised >= _MOST_TIMES or not self._request.automatic or not slower or not len(table):
            return states
        fastest_ms = float(table.typical_ms.min())
        lowest_ms = lowest_target(fastest_ms, self._latency.speed.error)
        latencies = [state for state in states if state.target is None]
        low = [state for state in latencies if _was_too_slow(state) and state.target_ms < lowest_ms]
        others = [state for state in states if all(state is not each for each in low)]
        next_ms = min((state.target_ms for state in others if state.target is None), default=math.inf)
        first_ms = min(lowest_ms, next_ms / _APART ** len(low))
        if not low or first_ms < LEAST_APART * max(fastest_ms, *(state.target_ms for state in low)):
            return states
        # Where all of them are out of reach, they lie over the range of latencies again.
        last_ms = next_ms if math.isfinite(next_ms) else max(self._resolve().targets_ms, default=0.0)
        apart = max((last_ms / first_ms) ** (1.0 / len(low)), _APART)
        raised_ms = [significant(first_ms * apart**step, 3) for step in range(len(low))]
        if told_ms is not None:
            raised_ms[int(np.argmin(np.abs(np.array(raised_ms) - told_ms)))] = told_ms
        raised = [TargetState(target_ms) for target_ms in raised_ms]
        self._times_raised += 1
        self._slowdown_before = self._slowdown()
        self._out_of_reach += low
        self.note = (
            f"{_milliseconds(raised)} in place of {_milliseconds(self._out_of_reach)}: the device became slower, and "
            "the fastest subnet that was found has no room there any more"
        )
        return sorted([*raised, *others], key=_latencies_first)

    def _slowdown(self) -> float:
        return self._latency.speed.typical_slowdown

    def _resolve(self) -> ResolvedTargets:
        observations = self._latency.observations
        table = observations.table(unsure=True)
        count = len(table)
        mean, std = self._latency.predict(np.concatenate([table.genomes, np.stack(self._ends)]))
        # A slow subnet that was slower still for a moment must not stretch the range: the predictor, which gives
        # outliers little weight, bounds its latency.
        latency = np.minimum(table.typical_ms, mean[:count] + 2.0 * std[:count])
        fastest_ms, slowest_ms = float(latency.min()), float(latency.max())
        for genome, end_ms, end_std in zip(self._ends[:2], mean[count:].tolist(), std[count:].tolist(), strict=False):
            if end_std <= _KNOWN_END * end_ms and not observations.of(genome).runs:
                fastest_ms, slowest_ms = min(fastest_ms, end_ms), max(slowest_ms, end_ms)
        if self._has_enough:
            slowest_ms = min(slowest_ms, _ROOM_ABOVE * float(mean[-1]))
        if not observations.knows_speeds and slowest_ms < _LEAST_RANGE * fastest_ms:
            self.unknown = (
                f"range unknown: every measurement was disturbed, and all took from {three_digits(fastest_ms)} to "
                f"{three_digits(slowest_ms)} ms; let nothing else run on the device, keep it cool, and search again, "
                "or give targets in milliseconds"
            )
            return ResolvedTargets(())
        return self._request.resolve(fastest_ms, max(slowest_ms, fastest_ms), self._latency.speed.error)

    def _find_enough(self) -> Genome | None:
        """The fastest subnet that no other is predicted to beat: a target beyond it would change nothing."""
        table = self._latency.observations.table(unsure=True)
        low, high = float(table.undisturbed_ms.min()), float(table.undisturbed_ms.max())
        latency = self._latency.undisturbed_model()
        probes = np.geomspace(low, max(high, low), _PROBES)
        found = self._solver(latency, probes.tolist(), table.genomes, np.random.default_rng([self._seed, 4]))
        winners = np.array([winner for winner in found if winner is not None], dtype=np.int16)
        if not len(winners):
            return None
        accuracy = np.asarray(self._accuracy.predict(winners))
        good = winners[accuracy >= accuracy.max() - _SAME_ACCURACY]
        enough: Genome = good[int(np.argmin(latency.predict(good)))]
        return enough


def _was_too_slow(state: TargetState) -> bool:
    """Whether a target was missed, and not for measurements that failed."""
    return state.met is False and not state.failures


def _latencies_first(state: TargetState) -> tuple[bool, float]:
    return (True, 0.0) if state.target is not None else (False, state.target_ms)


def _milliseconds(states: Sequence[TargetState]) -> str:
    return f"{', '.join(three_digits(state.target_ms) for state in states)} ms"
