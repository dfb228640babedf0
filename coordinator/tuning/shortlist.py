"""Choose winners by their accuracy on selection images: the best candidates of each target, and what is known of them.

An accuracy predictor orders subnets well over a whole design space, and badly among the few best ones of a target,
which it predicts to be nearly equal. So the best few are evaluated, and the images decide among them. Accuracies are
told from outside: this module evaluates nothing, and its lists are a function of the outcomes told and of the seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fleetnas.coordinator.search.blas import single_threaded_blas
from fleetnas.coordinator.search.candidate_table import genome_keys
from fleetnas.coordinator.tuning.proposal import Genome, TargetSolver
from fleetnas.coordinator.tuning.setting_latency import SettingLatency
from fleetnas.coordinator.tuning.subnet_choice import SubnetChoice
from fleetnas.coordinator.tuning.target_state import TargetState, is_floor
from fleetnas.supernet_export.spaces.base import Genomes

#: Margin on the prediction of a subnet that is not measured yet, in its standard deviations: that of a candidate.
_MARGIN = 0.5


@dataclass(frozen=True)
class NextChoice:
    """The next subnet to verify for a target, or, where it is not `measured` yet, to measure first."""

    genome: Genome
    measured: bool


class Shortlists:
    """The `size` best candidates of each target, and their accuracies on selection images. None with `size` 0."""

    def __init__(
        self,
        size: int,
        latency: SettingLatency,
        choice: SubnetChoice,
        solver: TargetSolver,
        rng: Callable[[], np.random.Generator],
    ) -> None:
        """`rng` makes the generator of the next search, which no other search shares."""
        self._size, self._latency, self._choice, self._solver, self._rng = size, latency, choice, solver, rng
        self._listed: dict[tuple[float, str], list[Genome]] = {}
        self._accuracies: dict[bytes, float | None] = {}

    @property
    def used(self) -> bool:
        """Whether winners are chosen among candidates by their accuracy on selection images."""
        return self._size > 0

    # -- candidates --------------------------------------------------------------------------------------------

    def make(self, states: Sequence[TargetState]) -> None:
        """List the candidates of open targets, best predicted accuracy first, from all that was told so far."""
        if not self._size or not states:
            return
        with single_threaded_blas():  # a resumed run lists them elsewhere, and must round the same
            pool = self._pool(states)
            if not len(pool):
                return
            accuracies = self._choice.accuracies(pool)
            for state in states:
                if is_floor(state):
                    continue
                within = self._within(state, pool)
                # Of subnets that are predicted to be equal the order must not depend on how they were found.
                order = sorted(np.flatnonzero(within), key=lambda row: (-accuracies[row], pool[row].tobytes()))
                self._listed[state.key] = [pool[row] for row in order[: self._size]]

    def _pool(self, states: Sequence[TargetState]) -> Genomes:
        """Return the measured subnets within any target, and the best predicted ones, found one after the other."""
        pool: dict[bytes, Genome] = {}
        for state in states:
            for genome in self._choice.measured_within(state, self._choice.safety(state), unsure=True):
                pool.setdefault(genome.tobytes(), genome)
        targets_ms = [
            self._choice.limit_ms(state) / (1.0 + self._choice.safety(state)) for state in states if not is_floor(state)
        ]
        predicted, rng = self._latency.undisturbed_model(_MARGIN), self._rng()
        found: dict[bytes, Genome] = {}
        for _ in range(self._size):
            winners = self._latency.winners(self._solver, targets_ms, rng, predicted, list(found.values()))
            new = {winner.tobytes(): winner for winner in winners if winner is not None}
            if not new.keys() - found.keys():
                break
            found |= new
        pool |= {key: genome for key, genome in found.items() if key not in pool}
        return np.stack(list(pool.values())) if pool else np.zeros((0, 0), np.int16)

    def _within(self, state: TargetState, genomes: Genomes) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
        """Tell which subnets are within a target: by their measurement, or else by their prediction, (n,)."""
        safety = self._choice.safety(state)
        measured = genome_keys(self._measured()) if len(self._measured()) else np.zeros(0, np.uint64)
        keys = genome_keys(genomes)
        within = self._choice.measured_within(state, safety, unsure=True)
        mean, deviation = self._latency.predict(genomes)
        fits: np.ndarray[tuple[int, ...], np.dtype[np.bool_]] = (mean + _MARGIN * deviation) * (
            1.0 + safety
        ) <= self._choice.limit_ms(state)
        known = np.isin(keys, measured)
        fits[known] = np.isin(keys[known], genome_keys(within)) if len(within) else False
        return fits

    def _measured(self) -> Genomes:
        return self._latency.observations.table(unsure=True).genomes

    # -- accuracies --------------------------------------------------------------------------------------------

    def wanted(self) -> list[Genome]:
        """Return the listed subnets whose accuracy was not told yet, each once."""
        wanted = {genome.tobytes(): genome for listed in self._listed.values() for genome in listed}
        return [genome for key, genome in wanted.items() if key not in self._accuracies]

    def tell(self, genome: Genome, accuracy: float | None) -> None:
        """Take the accuracy of a subnet on selection images, a fraction; None where its file cannot be evaluated."""
        self._accuracies[genome.tobytes()] = accuracy

    def accuracy(self, genome: Genome | None) -> float | None:
        """Return the accuracy of a subnet on selection images, a fraction; None where it is not known."""
        return None if genome is None else self._accuracies.get(genome.tobytes())

    # -- choosing ----------------------------------------------------------------------------------------------

    def holds(self, state: TargetState, genome: Genome) -> bool:
        """Whether a subnet is a candidate of a target."""
        return any(np.array_equal(genome, listed) for listed in self._listed.get(state.key, ()))

    def best(self, state: TargetState) -> NextChoice | None:
        """Return the candidate with the best known accuracy that is within its target as far as is known now.

        Of equal ones the best predicted is taken. None where no candidate is left, or none could be evaluated.
        """
        listed = [genome for genome in self._listed.get(state.key, ()) if self.accuracy(genome) is not None]
        if not listed:
            return None
        fits = self._within(state, np.stack(listed))
        observations = self._latency.observations
        left = [
            genome for genome, fit in zip(listed, fits, strict=True) if fit and not observations.of(genome).quarantined
        ]
        if not left:
            return None
        best = max(left, key=lambda genome: self.accuracy(genome) or 0.0)  # the first of equal ones
        return NextChoice(best, measured=bool(observations.of(best).runs))
