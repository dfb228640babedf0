"""What targets of other kinds than latency are about, as costs: milliseconds or millijoules that are to be small.

The predictor knows the typical latency of every subnet. The cost of one that was not measured follows from it by the
ratio of cost to latency, which is learned on each device setting; a re-measurement decides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fleetnas.coordinator.records.target_kinds import Target, TargetKind
from fleetnas.coordinator.tuning.cost_ratio import CostRatio
from fleetnas.coordinator.tuning.observations import Observations, Table
from fleetnas.coordinator.tuning.proposal import Genome
from fleetnas.coordinator.tuning.subnet_observations import Run
from fleetnas.coordinator.tuning.target_state import ShownValue
from fleetnas.fleet_protocol.messages import PercentileTime
from fleetnas.fleet_protocol.percentiles import planned_percentile, runs_needed

Floats = NDArray[np.float64]

#: Margin on a ratio that is not measured, in standard deviations between subnets.
_RATIO_SIGMAS = 0.7


@dataclass(frozen=True)
class Cost:
    """The cost of one measurement as it ran."""

    value: float
    decides: float | None
    """What is compared with the target: the upper end of a percentile's interval; None where the runs were too few."""
    low: float | None = None
    high: float | None = None


def percentiles_to_ask(percentiles: Sequence[float]) -> tuple[float, ...]:
    """Return the percentiles to measure: those of the targets, and those at which their decisive upper ends are."""
    return tuple(sorted({*percentiles, *map(planned_percentile, percentiles)}))


def cost_of(run: Run, target: Target) -> Cost | None:
    """Return the cost of a measurement that a target is about; None where the device did not tell it."""
    if target.kind is TargetKind.RATE:
        return None if run.mean_ms is None else Cost(run.mean_ms, run.mean_ms)
    if target.kind is TargetKind.ENERGY:
        return None if not run.energy_mj else Cost(run.energy_mj, run.energy_mj)
    found = _percentile(run, target.percentile)
    if found is None:
        return None
    enough = found.high_ms is not None and found.runs >= runs_needed(target.percentile)
    return Cost(found.value_ms, found.high_ms if enough else None, found.low_ms, found.high_ms)


def expected_cost(run: Run, target: Target) -> float | None:
    """Return the cost that a decisive re-measurement like this run would be compared by; None where it is not told."""
    cost = cost_of(run, target)
    if cost is None or target.kind is not TargetKind.PERCENTILE or cost.decides is not None:
        return None if cost is None else cost.decides
    planned = _percentile(run, planned_percentile(target.percentile))
    return cost.value if planned is None else planned.value_ms


def shown_value(run: Run, target: Target, typical_ms: float | None, accuracy: float) -> ShownValue:
    """Return what a re-measurement shows of a target, in the target's own unit; `accuracy` is the predicted one."""
    if target.kind is TargetKind.ACCURACY:
        return ShownValue(100.0 * accuracy)
    cost = cost_of(run, target)
    if cost is None:
        return ShownValue()
    scale = None if typical_ms is None else typical_ms / run.median_ms
    typical = None if scale is None or cost.decides is None else target.shown_value(cost.decides * scale)
    return ShownValue(target.shown_value(cost.value), cost.low, cost.high, typical)


class TargetCosts:
    """Costs of the subnets of one device setting, and the latency that a target comes down to."""

    def __init__(self, observations: Observations) -> None:
        self._observations = observations
        self._ratios: dict[Target, tuple[int, CostRatio | None]] = {}

    def ratio(self, target: Target) -> CostRatio | None:
        """Return the ratio of cost to latency as all measurements show it; None where none told the cost."""
        known = self._ratios.get(target)
        if known is None or known[0] != self._observations.version:
            known = self._ratios[target] = self._observations.version, self._learn(target)
        return known[1]

    def _learn(self, target: Target) -> CostRatio | None:
        points = sorted(
            (run.median_ms, cost)
            for subnet in self._observations
            for run in subnet.runs
            if (cost := expected_cost(run, target)) is not None
        )
        return CostRatio.learned(points) if points else None

    def limit_ms(self, target: Target) -> float:
        """Return the typical latency of a subnet that is expected to be within a target, ms; 0 where nothing tells."""
        ratio = self.ratio(target)
        return 0.0 if ratio is None else ratio.latency_ms(target.most_cost, _RATIO_SIGMAS)

    def of_table(self, table: Table, target: Target) -> Floats:
        """Return the expected costs of measured subnets at the typical speed, (n,); infinite where nothing tells."""
        ratio = self.ratio(target)
        if ratio is None:
            return np.full(len(table), np.inf)
        found = ratio.costs(table.typical_ms, _RATIO_SIGMAS)
        for row, genome in enumerate(table.genomes):
            own = self._own_ratio(genome, target)
            if own is not None:
                found[row] = table.typical_ms[row] * own
        return found

    def predict(self, latency_ms: Floats, target: Target) -> Floats:
        """Return the expected costs of subnets with these typical latencies, ms, (n,); infinite where nothing tells."""
        ratio = self.ratio(target)
        return np.full(len(latency_ms), np.inf) if ratio is None else ratio.costs(latency_ms, 0.0)

    def of_subnet(self, genome: Genome, target: Target) -> float | None:
        """Return the expected cost of a measured subnet at the typical speed; None where it is not known."""
        latency_ms = self._observations.latency_ms(self._observations.of(genome))
        own, ratio = self._own_ratio(genome, target), self.ratio(target)
        if latency_ms is None or ratio is None:
            return None
        return latency_ms * own if own is not None else float(ratio.costs(np.array([latency_ms]), _RATIO_SIGMAS)[0])

    def _own_ratio(self, genome: Genome, target: Target) -> float | None:
        """Return a subnet's own ratio of cost to latency: the mean of the runs that decide, in the logarithm."""
        logs = [
            math.log(cost.decides / run.median_ms)
            for run in self._observations.of(genome).runs
            if (cost := cost_of(run, target)) is not None and cost.decides is not None
        ]
        return math.exp(math.fsum(logs) / len(logs)) if logs else None


def _percentile(run: Run, percentile: float) -> PercentileTime | None:
    return next((found for found in run.percentiles if abs(found.percentile - percentile) < 1e-6), None)
