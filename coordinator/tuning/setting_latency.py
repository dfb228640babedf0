"""Latencies of a device setting, measured and predicted, and the speed at which the device typically runs.

The predictor learns latency at undisturbed speed. Targets are about latency at the typical speed of the run: so are all
milliseconds here whose name lacks `undisturbed`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fleetnas.coordinator.predictors.bayesian import BayesianPredictor
from fleetnas.coordinator.predictors.metrics import HeldOutError
from fleetnas.coordinator.predictors.upper_bounds import learn_upper_bounds
from fleetnas.coordinator.search.candidate_table import genome_keys
from fleetnas.coordinator.search.latency import MeasuredLatency, PredictorLatency, TableLatency
from fleetnas.coordinator.tuning.board_speeds import BoardSpeeds
from fleetnas.coordinator.tuning.initial_design import InitialDesign
from fleetnas.coordinator.tuning.observations import Observations
from fleetnas.coordinator.tuning.proposal import Genome, TargetSolver
from fleetnas.coordinator.tuning.subnet_observations import Run
from fleetnas.coordinator.tuning.typical_speed import TypicalSpeed
from fleetnas.fleet_protocol.messages import Measurement
from fleetnas.supernet_export.spaces.base import Genomes

Floats = NDArray[np.float64]


class SettingLatency:
    """Observations of one device setting and the predictor that learned from them."""

    def __init__(self, design: InitialDesign, speeds: BoardSpeeds | None = None) -> None:
        """`speeds` of the boards of a class, which learn from the measurements too."""
        self.observations = Observations(speeds)
        self.space = design.space
        self._features, self._prior = design.features, design.prior
        self._learner: BayesianPredictor | None = None
        self._left_out: dict[tuple[int, ...], float] | None = None

    # -- learning ----------------------------------------------------------------------------------------------

    def add(self, genome: Genome, measurement: Measurement, *, awaited: bool = False) -> Run:
        """Add one more measurement; `awaited` where it waited for a fast device."""
        self._learner = self._left_out = None
        return self.observations.add(genome, measurement, awaited=awaited)

    def release(self) -> None:
        """Forget the predictor, which can be learned again: those of a whole fleet would fill the memory."""
        self._learner = None

    def add_failure(self, genome: Genome) -> None:
        """Count a failed measurement of a subnet."""
        self.observations.add_failure(genome)

    @property
    def speed(self) -> TypicalSpeed:
        """Typical slow-down of the device."""
        return self.observations.speed

    @property
    def predictor(self) -> BayesianPredictor:
        """The predictor of latency at undisturbed speed, with all measurements learned.

        Learned anew from the prior, in a fixed order, so that not even rounding depends on the order of arrival or on
        a restart of the coordinator.
        """
        if self._learner is None:
            learner = BayesianPredictor(self._prior)
            training_set = self.observations.training_set()
            if training_set:
                genomes, latency, noise = zip(*training_set, strict=True)
                learner.update(self._of(genomes), latency, noise)
            bounds = self.observations.upper_bounds()
            if bounds:
                genomes, bounds_ms = zip(*bounds, strict=True)
                learn_upper_bounds(learner, self._of(genomes), np.array(bounds_ms))
            self._learner = learner
        return self._learner

    def _of(self, genomes: Sequence[tuple[int, ...]]) -> Floats:
        return self._features.features(np.array(genomes, dtype=np.int16))

    # -- predicting --------------------------------------------------------------------------------------------

    def predict_undisturbed(self, genomes: Genomes) -> tuple[Floats, Floats]:
        """Return mean and standard deviation of a measurement at undisturbed speed, ms, each (n,)."""
        return self.predictor.predict(self._features.features(genomes), include_noise=True)

    def predict(self, genomes: Genomes) -> tuple[Floats, Floats]:
        """Return mean and standard deviation of a measurement at the typical speed, ms, each (n,)."""
        mean, deviation = self.predict_undisturbed(genomes)
        typical = self.speed.typical_ms(np.maximum(mean, 1e-9))
        return typical, deviation * typical / np.maximum(mean, 1e-9)

    def predict_without_itself(self, genome: Genome) -> float | None:
        """Predict a measured subnet's latency at the typical speed, ms, with its own measurements left out.

        None where the subnet's speed is not known, or nothing else was measured.
        """
        if self._left_out is None:
            measured = self._measured_genomes()
            predicted = self.predictor.predict_left_out() if len(measured) > 1 else ()
            self._left_out = dict(zip(measured, (float(ms) for ms in predicted), strict=False))
        undisturbed = self._left_out.get(tuple(genome.tolist()), 0.0)
        return undisturbed * self.speed.slowdown(undisturbed) if undisturbed > 0 else None

    def _measured_genomes(self) -> list[tuple[int, ...]]:
        """Return the subnets with a latency at undisturbed speed, in the order in which the predictor learned them."""
        return list(dict.fromkeys(genome for genome, *_ in self.observations.training_set()))

    def held_out_error(self) -> HeldOutError:
        """Return the predictor's held-out error: each subnet of known latency predicted from all others."""
        return self.predictor.leave_one_out(len(self._measured_genomes()))

    # -- searching ---------------------------------------------------------------------------------------------

    def undisturbed_model(self, sigmas: float = 0.0) -> PredictorLatency:
        """Return the predictor as a latency model, at undisturbed speed."""
        return PredictorLatency(self._features, self.predictor, sigmas=sigmas, include_noise=True)

    def winners(
        self,
        solver: TargetSolver,
        targets_ms: Sequence[float],
        rng: np.random.Generator,
        predicted: PredictorLatency,
        without: Sequence[Genome] = (),
        measured_factor: float = 1.0,
    ) -> list[Genome | None]:
        """Return, per target, the most accurate subnet by prediction and measurement; None where there is none.

        Args:
            solver: finds them.
            targets_ms: at the typical speed, in any order.
            rng: of the search.
            predicted: a model of latency at undisturbed speed, with its margin.
            without: subnets that are left out.
            measured_factor: measured latencies count as this many times as long.
        """
        if not targets_ms:
            return []
        latency: TableLatency = predicted
        table = self.observations.table()
        genomes, measured_ms = table.genomes, measured_factor * table.undisturbed_ms
        excluded = [*self.observations.quarantined(), *without]
        if excluded:
            ruled_out = np.stack(excluded)
            kept = ~np.isin(genome_keys(genomes), genome_keys(ruled_out)) if len(genomes) else slice(0)
            genomes = np.concatenate([genomes.reshape(-1, len(excluded[0]))[kept], ruled_out])
            measured_ms = np.concatenate([measured_ms[kept], np.full(len(excluded), np.inf)])
        if len(genomes):
            latency = MeasuredLatency(latency, genomes, measured_ms)
        bounds = self.speed.undisturbed_of(np.array(targets_ms, dtype=np.float64)).tolist()
        order = np.argsort(bounds, kind="stable")
        found = solver(latency, [bounds[i] for i in order], genomes, rng)
        winners: list[Genome | None] = [None] * len(bounds)
        for place, winner in zip(order.tolist(), found, strict=True):
            winners[place] = winner
        return winners
