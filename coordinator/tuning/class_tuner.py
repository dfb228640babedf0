"""The search of a class of equal boards: one predictor, whose measurements any of the boards may make."""

from __future__ import annotations

from typing import Any

from fleetnas.coordinator.records.targets import TargetRequest
from fleetnas.coordinator.search.problem import AccuracyModel
from fleetnas.coordinator.tuning.board_speeds import BoardSpeeds
from fleetnas.coordinator.tuning.device_tuner import DeviceTuner
from fleetnas.coordinator.tuning.initial_design import InitialDesign
from fleetnas.coordinator.tuning.proposal import Genome, Proposal, TargetSolver
from fleetnas.coordinator.tuning.subnet_observations import Run
from fleetnas.coordinator.tuning.target_state import TargetState
from fleetnas.fleet_protocol.messages import Failed, Measurement


class ClassTuner(DeviceTuner):
    """A `DeviceTuner` that is told which board measured.

    Its latencies are stated at the speed below which are `SERVED_SHARE` of the boards, slow ones left out. Of one board
    alone it is a `DeviceTuner`.
    """

    def __init__(
        self,
        design: InitialDesign,
        accuracy: AccuracyModel,
        targets: TargetRequest,
        solver: TargetSolver,
        **options: Any,
    ) -> None:
        """Take what a `DeviceTuner` takes."""
        self.speeds = BoardSpeeds()
        super().__init__(design, accuracy, targets, solver, speeds=self.speeds, **options)
        #: The subnet that every board measures, so that their speeds are compared: neither the smallest nor largest.
        self.anchor: Genome = design.subnets[min(2, len(design.subnets) - 1)]

    def measure_at_once(self, boards: int) -> None:
        """Set the number of boards that each round gives a candidate."""
        self._candidates.measure_at_once(boards)

    def tell_of(self, board: str, proposal: Proposal, outcome: Measurement | Failed) -> None:
        """Take the outcome of a proposal on a board."""
        self._latency.observations.measured_by(board)
        self.tell(proposal, outcome)

    def enter(self, proposal: Proposal) -> None:
        """Enter the phase in which a proposal was made, before anything of its round is told."""
        self._follow(proposal)

    def observe(self, board: str, genome: Genome, measurement: Measurement) -> None:
        """Learn from one more measurement, which is the outcome of no proposal of this tuner."""
        if not self._abandoned:
            self._latency.observations.measured_by(board)
            self._latency.add(genome, measurement)
            self._current = False

    def anchor_proposal(self) -> Proposal:
        """Return the proposal to measure the anchor."""
        return self._proposer.propose([self.anchor], "initial-design")[0]

    def check_proposal(self, genome: Genome, target_ms: float) -> Proposal:
        """Return the proposal to verify a winner on one more board."""
        return self._proposer.propose_again(genome, TargetState(target_ms), waits=False)

    def typical_ms(self, run: Run) -> float | None:
        """Return the latency of a run's subnet on the board that ran it, at the typical speed, ms; None: not known."""
        return self._latency.observations.typical_ms(run.as_it_ran)
