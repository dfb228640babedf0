"""Automatic targets of one device setting: even steps over the range of latencies of its subnets in this run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fleetnas.coordinator.records.target_kinds import three_digits
from fleetnas.coordinator.records.targets import ResolvedTargets, TargetRequest
from fleetnas.coordinator.search.problem import AccuracyModel
from fleetnas.coordinator.tuning.proposal import Genome, TargetSolver
from fleetnas.coordinator.tuning.setting_latency import SettingLatency

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
        self._first = ResolvedTargets(())
        self._first_slowdown = 1.0

    def begin(self) -> None:
        """Take the first range, once the initial design is measured."""
        enough = self._find_enough()
        if enough is not None:
            self._ends.append(enough)
        self._has_enough = enough is not None
        self._first_slowdown = self._slowdown()
        self._first = self._resolve()

    def now(self) -> ResolvedTargets:
        """Resolve the targets at the present typical speed; none where the range is unknown."""
        if abs(self._slowdown() / self._first_slowdown - 1.0) <= _SAME_SPEED:
            return self._first
        return self._resolve()

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
