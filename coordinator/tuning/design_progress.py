"""Progress of the initial design on one device setting."""

from __future__ import annotations

from collections.abc import Sequence

from fleetnas.coordinator.tuning.observations import Observations
from fleetnas.coordinator.tuning.proposal import Genome

#: Measurements of one subnet of the initial design that a disturbed device may spoil.
_TRIES = 2


class DesignProgress:
    """Tells which subnets of the initial design are still to be measured, or to be measured once more."""

    def __init__(self, subnets: Sequence[Genome], observations: Observations) -> None:
        self._subnets, self._observations = subnets, observations
        self._tries = dict.fromkeys((genome.tobytes() for genome in subnets), 0)

    def count_try(self, genome: Genome) -> None:
        """Count a measurement of one of its subnets, or a failed one; others are ignored."""
        if genome.tobytes() in self._tries:
            self._tries[genome.tobytes()] += 1

    def remaining(self) -> list[Genome]:
        """Return the subnets that are to be measured, in their order."""
        return [genome for genome in self._subnets if self._is_open(genome)]

    def is_complete(self) -> bool:
        """Whether nothing is left to measure."""
        return not any(map(self._is_open, self._subnets))

    def _is_open(self, genome: Genome) -> bool:
        seen = self._observations.of(genome)
        if seen.quarantined or (seen.runs and seen.sure):
            return False
        return self._tries[genome.tobytes()] - seen.failures < _TRIES
