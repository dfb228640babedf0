"""Find subnets that keep an accuracy with the least latency, energy or parameters.

A ladder of latencies is solved for the most accurate subnet within each step. The first one that keeps the accuracy is
about the fastest that does, and a second ladder between it and the step below is finer. Which of these subnets are
worth a measurement follows from the expected improvement (Jones et al. 1998) of the logarithm of what is minimised.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from fleetnas.coordinator.records.target_kinds import Target
from fleetnas.coordinator.search.latency import SlotTableLatency
from fleetnas.coordinator.search.problem import AccuracyModel
from fleetnas.coordinator.tuning.proposal import Genome, TargetSolver
from fleetnas.coordinator.tuning.setting_latency import SettingLatency
from fleetnas.coordinator.tuning.subnet_choice import SubnetChoice
from fleetnas.coordinator.tuning.target_state import TargetState
from fleetnas.supernet_export.spaces.base import COST_NAMES, DesignSpace, Genomes

Floats = NDArray[np.float64]

#: Steps of the first ladder and of the second one, and how far the first one reaches beyond what was measured.
_STEPS, _FINE_STEPS, _BELOW, _ABOVE = 16, 8, 0.85, 1.05
#: A subnet is worth a measurement whose expected improvement is more than this, relative; measurements of one round.
_LEAST_GAIN, _ROUND = 0.002, 3
_MACS_COLUMNS = [column for column, name in enumerate(COST_NAMES) if name.startswith("macs_")]


class FloorSearch:
    """Searches subnets for the accuracies that are to be kept on one device setting."""

    def __init__(
        self,
        space: DesignSpace,
        latency: SettingLatency,
        choice: SubnetChoice,
        solver: TargetSolver,
        rng: Callable[[], np.random.Generator],
    ) -> None:
        """`rng` makes the generator of the next search."""
        self._space, self._latency, self._choice, self._solver, self._rng = space, latency, choice, solver, rng

    def find(self, state: TargetState) -> list[Genome]:
        """Return the subnets that are worth a measurement for a target, the best first."""
        if state.target is None or not len(self._latency.observations.table(unsure=True)):
            return []
        pool = self._pool(state.target)
        if not len(pool):
            return []
        expected, deviation = self._objective(state.target, pool)
        held = self._choice.held_objective(state)
        gains = _improvement(expected, deviation, held)
        order = sorted(np.flatnonzero(gains > _LEAST_GAIN), key=lambda row: (-gains[row], pool[row].tobytes()))
        return [pool[row] for row in order[:_ROUND]]

    def _objective(self, target: Target, genomes: Genomes) -> tuple[Floats, Floats]:
        """Return what is minimised, (n,), as predicted, and the standard deviation of its logarithm, (n,)."""
        if target.minimise == "parameters":
            return np.asarray(self._space.parameters(genomes), dtype=np.float64), np.zeros(len(genomes))
        mean_ms, deviation_ms = self._latency.predict(genomes)
        mean_ms = np.maximum(mean_ms, 1e-9)
        expected = mean_ms if target.minimise == "latency" else self._choice.predict_energy(mean_ms)
        return expected, deviation_ms / mean_ms

    def _pool(self, target: Target) -> Genomes:
        """Return subnets that keep the accuracy and are not measured yet, (n, G)."""
        table = self._latency.observations.table(unsure=True)
        if target.minimise == "parameters":
            sizes = np.asarray(self._space.parameters(np.concatenate([self._space.smallest(), self._space.largest()])))
            least, most = float(sizes[0]), float(sizes[1])
        else:
            least, most = _BELOW * float(table.typical_ms[0]), _ABOVE * float(table.typical_ms[-1])
        coarse = np.geomspace(least, most, _STEPS)
        found = self._solve(target, coarse.tolist(), table.genomes)
        keeps = [step for step, genome in enumerate(found) if genome is not None and self._choice.keeps(target, genome)]
        if keeps and keeps[0] > 0:
            fine = np.geomspace(coarse[keeps[0] - 1], coarse[keeps[0]], _FINE_STEPS + 1)[1:-1]
            found += self._solve(target, fine.tolist(), table.genomes)
        pool = {
            genome.tobytes(): genome
            for genome in found
            if genome is not None and self._choice.keeps(target, genome) and self._choice.is_open(genome)
        }
        return np.stack(list(pool.values())) if pool else np.zeros((0, 0), np.int16)

    def _solve(self, target: Target, limits: Sequence[float], start: Genomes) -> list[Genome | None]:
        if target.minimise != "parameters":
            model = self._latency.undisturbed_model()
            return self._latency.winners(self._solver, limits, self._rng(), model)
        column = COST_NAMES.index("parameters")
        tables = [np.asarray(costs[:, column], dtype=np.float64) for costs in self._space.slot_costs]
        return self._solver(SlotTableLatency(self._space, 0.0, tables), limits, start, self._rng())


def highest_accuracy(space: DesignSpace, accuracy: AccuracyModel, solver: TargetSolver) -> float:
    """Return the highest predicted top-1 accuracy that a search of the whole space finds, a fraction."""
    tables = [np.asarray(costs[:, _MACS_COLUMNS], dtype=np.float64).sum(axis=1) for costs in space.slot_costs]
    most = 2.0 * float(space.macs(space.largest())[0]) + 1.0
    start = np.concatenate([space.smallest(), space.largest()])
    (best,) = solver(SlotTableLatency(space, 0.0, tables), [most], start, np.random.default_rng(0))
    return 0.0 if best is None else float(accuracy.predict(best[None])[0])


def _improvement(expected: Floats, deviation: Floats, held: float) -> Floats:
    """Return the expected improvement of the logarithm over `held`, (n,), of lognormal values."""
    if not math.isfinite(held):
        return 1.0 / np.maximum(expected, 1e-12) * float(expected.min())
    gain = math.log(held) - np.log(expected)
    sigma = np.maximum(deviation, 1e-9)
    below = np.array([0.5 * math.erfc(-each / math.sqrt(2.0)) for each in (gain / sigma).tolist()])
    density = np.exp(-0.5 * np.minimum((gain / sigma) ** 2, 700.0)) / math.sqrt(2.0 * math.pi)
    found: Floats = gain * below + sigma * density
    return found
