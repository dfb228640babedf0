"""Choose, among the measured subnets of one device setting, the best one for a target."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from fleetnas.coordinator.records.target_kinds import Target, TargetKind
from fleetnas.coordinator.records.target_status import TargetStatus
from fleetnas.coordinator.search.problem import AccuracyModel
from fleetnas.coordinator.tuning.observations import Table
from fleetnas.coordinator.tuning.proposal import Genome
from fleetnas.coordinator.tuning.setting_latency import SettingLatency
from fleetnas.coordinator.tuning.target_costs import TargetCosts
from fleetnas.coordinator.tuning.target_state import ChosenSubnet, TargetState, is_floor
from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.supernet_export.spaces.base import Genomes

#: A subnet that was measured within the target, but not by the margin, is re-measured first where it is better by this
#: (top-1, a fraction): it passes often enough to make up for the misses.
_OPTIMISTIC_GAIN = 0.005
#: Margin on a target in standard deviations of a measurement, and its bounds, for one measurement: of n that say the
#: same the square root of n is left. Small, so that winners fill their targets: most pass when they are measured again,
#: and a miss costs one more measurement with twice the margin. The typical speed needs more: where it is wrong, every
#: winner is, and no re-measurement shows that.
_SAFETY_SIGMAS, _SPEED_SIGMAS, _LEAST_SAFETY, _MOST_SAFETY = 1.2, 2.0, 0.01, 0.10


#: Stands for all targets about energy: what is told is the same.
_ENERGY = Target(TargetKind.ENERGY, 1.0)


class SubnetChoice:
    """Weighs measured latency against predicted accuracy."""

    def __init__(self, latency: SettingLatency, accuracy: AccuracyModel) -> None:
        self._latency, self._observations, self._accuracy = latency, latency.observations, accuracy
        self.costs = TargetCosts(latency.observations)
        #: The tables that were asked about last, with the accuracies of their subnets.
        self._tables: dict[bool, tuple[Table, NDArray[np.float64]]] = {}

    def safety(self, state: TargetState) -> float:
        """Return the margin on a target, relative, for a subnet that was measured once, or is predicted.

        After a miss it is twice as wide, and wider than the miss went beyond; of a target that is met no miss counts.
        """
        margin = self._margin(1)
        for missed_by in state.missed_by if state.status is not TargetStatus.MET else ():
            margin = min(max(2.0 * margin, 1.5 * missed_by), 0.5)
        return margin

    def _margin(self, runs: int) -> float:
        noise = _SAFETY_SIGMAS * self._observations.noise
        typical = math.hypot(noise / math.sqrt(runs), _SPEED_SIGMAS * self._latency.speed.error)
        return min(max(typical, _LEAST_SAFETY / math.sqrt(runs)), _MOST_SAFETY)

    def _runs(self, genome: Genome) -> int:
        """Return the number of runs that a subnet's latency is the mean of, at least 1."""
        return max(sum(run.undisturbed_ms is not None for run in self._observations.of(genome).runs), 1)

    def fits(self, state: TargetState, genome: Genome) -> bool:
        """Whether a subnet is within a target by the margin that all its measurements leave."""
        if state.target is not None:
            cost = self.costs.of_subnet(genome, state.target)
            return cost is not None and cost * (1.0 + self._margin(self._runs(genome))) <= state.target.most_cost
        latency_ms = self._observations.latency_ms(self._observations.of(genome))
        return (
            latency_ms is not None and latency_ms * (1.0 + self._margin(max(self._runs(genome), 1))) <= state.target_ms
        )

    def chance_to_fit(self, state: TargetState, genome: Genome) -> float:
        """Return the probability that a measured subnet fits a target once it is measured one more time."""
        runs = self._runs(genome)
        if state.target is None:
            latency_ms = self._observations.latency_ms(self._observations.of(genome)) or math.inf
            limit_ms = state.target_ms / (1.0 + self._margin(runs + 1))
        else:  # costs in place of latencies
            latency_ms = self.costs.of_subnet(genome, state.target) or math.inf
            limit_ms = state.target.most_cost / (1.0 + self._margin(runs + 1))
        # By this the mean of these runs moves with the next one.
        moves = self._observations.noise / math.sqrt(runs * (runs + 1.0))
        return 0.5 * math.erfc((latency_ms / limit_ms - 1.0) / max(moves, 1e-9) / math.sqrt(2.0))

    def best_measured(self, state: TargetState, safety: float, *, unsure: bool) -> Genome | None:
        """Return the most accurate measured subnet within the target less its margin; of equals the fastest.

        One that was within the target although its device was slowed down needs no margin.
        """
        table = self._observations.table(unsure=unsure)
        within = np.flatnonzero(self._within(table, state, safety))
        if not len(within):
            return None
        if state.target is not None and state.target.kind is TargetKind.ACCURACY:
            objective = self._objectives(table, state.target)[within]
            fewest: Genome = table.genomes[within[objective.argmin()]]
            return fewest if math.isfinite(float(objective.min())) else None
        best: Genome = table.genomes[within[self._accuracies_of(table, unsure=unsure)[within].argmax()]]
        return best

    def measured_within(self, state: TargetState, safety: float, *, unsure: bool) -> Genomes:
        """Return the measured subnets within the target less its margin, fastest first, (n, G)."""
        table = self._observations.table(unsure=unsure)
        return table.genomes[self._within(table, state, safety)]

    def fastest_within(self, state: TargetState) -> Genome | None:
        """Return the fastest measured subnet where it is within a target without a margin."""
        table = self._observations.table(unsure=True)
        within = self._within(table, state, 0.0)
        return table.genomes[0] if len(within) and within[0] else None

    def limit_ms(self, state: TargetState) -> float:
        """Return the typical latency that a target comes down to, ms."""
        return state.target_ms if state.target is None else self.costs.limit_ms(state.target)

    def least_cost(self, target: Target) -> float:
        """Return the least expected cost of a measured subnet; infinite where nothing tells."""
        table = self._observations.table(unsure=True)
        ratio = self.costs.ratio(target) if target.kind is not TargetKind.ACCURACY else None
        return float(ratio.costs(table.typical_ms[:1], 0.0)[0]) if ratio is not None and len(table) else math.inf

    def tells(self, state: TargetState) -> bool:
        """Whether a measurement told what a target is about; True before there is one."""
        target = state.target
        if target is None or not len(self._observations.table(unsure=True)):
            return True
        if target.kind is TargetKind.ACCURACY:
            return target.minimise != "energy" or self.costs.ratio(_ENERGY) is not None
        return self.costs.ratio(target) is not None

    def _within(self, table: Table, state: TargetState, safety: float) -> NDArray[np.bool_]:
        """Return which measured subnets are within a target less its margin, (n,)."""
        if state.target is None:
            return _within(table, state.target_ms, safety)
        if state.target.kind is TargetKind.ACCURACY:
            return np.array([self.keeps(state.target, genome) for genome in table.genomes], dtype=np.bool_)
        return self.costs.of_table(table, state.target) * (1.0 + safety) <= state.target.most_cost

    # -- accuracies that are to be kept ------------------------------------------------------------------------

    def keeps(self, target: Target, genome: Genome) -> bool:
        """Whether a subnet's predicted accuracy is at least the one that is to be kept."""
        return target.is_within(100.0 * self.accuracy(genome))

    def predict_energy(self, latency_ms: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the expected energies of subnets with these typical latencies, ms, in mJ, (n,)."""
        return self.costs.predict(latency_ms, _ENERGY)

    def _objectives(self, table: Table, target: Target) -> NDArray[np.float64]:
        """Return what is minimised of measured subnets, (n,)."""
        if target.minimise == "parameters":
            return np.asarray(self._latency.space.parameters(table.genomes), dtype=np.float64)
        return self.costs.of_table(table, _ENERGY) if target.minimise == "energy" else table.typical_ms

    def held_objective(self, state: TargetState) -> float:
        """Return the least of what is minimised, of measured subnets that keep the accuracy; infinite without one."""
        table = self._observations.table(unsure=False)
        within = self._within(table, state, 0.0) if len(table) else np.zeros(0, np.bool_)
        if not within.any() or state.target is None:
            return math.inf
        return float(self._objectives(table, state.target)[within].min())

    # -- accuracy ----------------------------------------------------------------------------------------------

    def _accuracies_of(self, table: Table, *, unsure: bool) -> NDArray[np.float64]:
        """Return the accuracies of a table's subnets (n,), which many targets ask for."""
        known = self._tables.get(unsure)
        if known is None or known[0] is not table:
            known = self._tables[unsure] = table, self.accuracies(table.genomes)
        return known[1]

    def accuracies(self, genomes: Genomes) -> NDArray[np.float64]:
        """Return the predicted top-1 accuracies, fractions, (n,)."""
        return np.asarray(self._accuracy.predict(genomes), dtype=np.float64)

    def choice(self, state: TargetState, *, unsure: bool) -> Genome | None:
        """Return the best measured subnet within a target by its margin; before the first miss a better one without."""
        choice = self.best_measured(state, self.safety(state), unsure=unsure)
        if choice is not None and not state.verifications and not is_floor(state):
            optimistic = self.best_measured(state, 0.0, unsure=unsure)
            if optimistic is not None and self.accuracy(optimistic) > self.accuracy(choice) + _OPTIMISTIC_GAIN:
                return optimistic
        return choice

    def accuracy(self, genome: Genome) -> float:
        """Return the predicted top-1 accuracy, a fraction."""
        return float(self._accuracy.predict(genome[None])[0])

    def held_accuracy(self, state: TargetState) -> float | None:
        """Return the predicted accuracy of the best subnet that was measured within a target; None without one."""
        best = self.best_measured(state, self.safety(state), unsure=False)
        known = [self.accuracy(best)] if best is not None else []
        if state.status is TargetStatus.MET and state.accuracy is not None:
            known.append(state.accuracy)
        return max(known, default=None)

    def is_open(self, genome: Genome) -> bool:
        """Whether a subnet's latency is to be measured still."""
        return not self._observations.of(genome).sure

    def subnet(self, genome: Genome, architecture: Architecture) -> ChosenSubnet:
        """Return a subnet for a target to stand at."""
        runs = self._observations.of(genome).runs
        # The first run was made before the file was calibrated.
        return ChosenSubnet(genome, architecture, self.accuracy(genome), runs[0].ran_ms if runs else None)


def _within(table: Table, target_ms: float, safety: float) -> NDArray[np.bool_]:
    """Return which subnets are within a target less its margin, or within it although the device was slowed, (n,)."""
    within = table.typical_ms * (1.0 + safety) <= target_ms
    return within | ((table.typical_ms <= target_ms) & (table.bound_ms <= target_ms))
