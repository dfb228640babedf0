"""Make the proposals of one device setting: subnets to measure, with their predictions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from fleetnas.coordinator.records.budget import Purpose
from fleetnas.coordinator.search.problem import AccuracyModel
from fleetnas.coordinator.tuning.needed_precision import VERIFICATION, precision_of
from fleetnas.coordinator.tuning.proposal import Genome, Proposal
from fleetnas.coordinator.tuning.setting_latency import SettingLatency
from fleetnas.coordinator.tuning.target_state import TargetState
from fleetnas.coordinator.tuning.typical_speed import TypicalSpeed
from fleetnas.device_profiles.quantities import MAX_FACTOR
from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.supernet_export.spaces.base import Genomes

#: A re-measurement waits for a device that is slower than both: this factor times its typical latency, and this factor
#: times its undisturbed latency.
_WAIT_ABOVE_TYPICAL, WAIT_ABOVE = 1.03, 1.08
#: A prediction below this share of the fastest subnet's latency is none: a linear model may fall below 0.
_ABSURD = 0.1


def patience(speed: TypicalSpeed, undisturbed_ms: float) -> float:
    """Return the slow-down above which a re-measurement waits, for a subnet with this latency at undisturbed speed."""
    return min(max(WAIT_ABOVE, _WAIT_ABOVE_TYPICAL * speed.slowdown(undisturbed_ms)), MAX_FACTOR)


class Proposer:
    """Makes proposals with predicted latency and accuracy."""

    def __init__(
        self,
        latency: SettingLatency,
        accuracy: AccuracyModel,
        architecture: Callable[[Genome], Architecture],
        percentiles: Sequence[float] = (),
    ) -> None:
        """`architecture` decodes a genome; measurements report the `percentiles` of their run times."""
        self._percentiles = tuple(percentiles)
        self._latency, self._observations = latency, latency.observations
        self._accuracy, self.architecture = accuracy, architecture

    def propose(self, genomes: Sequence[Genome], purpose: Purpose, state: TargetState | None = None) -> list[Proposal]:
        """Return proposals to measure subnets for the first time, or once more."""
        if not genomes:
            return []
        matrix: Genomes = np.stack(genomes)
        mean, deviation = self._latency.predict(matrix)
        table = self._observations.table(unsure=True)
        least_ms = _ABSURD * float(table.typical_ms[0]) if len(table) else 0.0
        top1 = self._accuracy.predict(matrix).tolist()
        predictions = [
            (ms, std_ms) if ms > least_ms else (None, None)
            for ms, std_ms in zip(mean.tolist(), deviation.tolist(), strict=True)
        ]
        return [
            Proposal(
                tuple(genome.tolist()),
                self.architecture(genome),
                purpose,
                None if state is None else state.asked_ms,
                predicted_ms=predicted_ms,
                predicted_std_ms=std_ms,
                predicted_accuracy=accuracy,
                precision=precision_of(predicted_ms, std_ms),
                target="" if state is None else state.text,
                percentiles=self._percentiles,
            )
            for genome, (predicted_ms, std_ms), accuracy in zip(matrix, predictions, top1, strict=True)
        ]

    def propose_again(self, genome: Genome, state: TargetState, *, waits: bool) -> Proposal:
        """Return a re-measurement; with `waits`, while the device is slow it waits.

        Predicted without this subnet's own measurements.
        """
        undisturbed_ms = max(float(self._latency.predict_undisturbed(genome[None])[0][0]), 1e-9)
        return Proposal(
            tuple(genome.tolist()),
            self.architecture(genome),
            "verification",
            state.asked_ms,
            predicted_ms=self._latency.predict_without_itself(genome),
            predicted_accuracy=float(self._accuracy.predict(genome[None])[0]),
            wait_above=patience(self._latency.speed, undisturbed_ms) if waits else None,
            precision=VERIFICATION,
            target=state.text,
            percentiles=self._percentiles,
        )
