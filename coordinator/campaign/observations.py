"""What one device setting has shown so far: measurements and failures per subnet, and how slow the device typically is.

Everything here is a function of the set of measurements, whatever the order in which they came.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from coordinator.campaign.typical_speed import TypicalSpeed
from fleet_protocol.messages import Measurement
from supernet_export.spaces.base import Genomes

Floats = NDArray[np.float64]

#: Two runs of one file on one device differ by about this much, relative, however steady each of them is.
BETWEEN_RUNS = 0.01
#: A measurement whose own noise is beyond this says little; one more is taken before it is relied on.
UNSURE_NOISE = 0.15
#: A (device setting, subnet) that failed this often is left alone.
QUARANTINE_FAILURES = 2
#: 95 % half-width of a normal distribution in standard deviations.
_HALF_WIDTH_SIGMAS = 1.96
#: An agent that finds a reference faster than this share of its level calibrated it on a slowed device: latencies that
#: were stated at the old level are restated. Smaller differences are those between two sessions of one subnet.
_SAME_LEVEL = 0.92
#: A latency as it ran bounds the typical one where the device was slower than typically by more than this.
_CLEARLY_SLOWER = 1.05
#: Subnets of known speed from which on the others' latencies as they ran are only bounds, and the standard deviation
#: with which they stand in for unknown latencies before that, relative.
_LEAST_KNOWN, _UNKNOWN_SPEED_NOISE = 3, 0.15


@dataclass
class SubnetObservations:
    """One subnet on one device setting."""

    genome: NDArray[np.int16]
    runs: list[Measurement] = field(default_factory=list)
    missed: list[Measurement] = field(default_factory=list)
    """Re-measurements that missed a target; what they showed counts whatever other runs said."""
    failures: int = 0

    @property
    def quarantined(self) -> bool:
        return self.failures >= QUARANTINE_FAILURES

    @property
    def fastest_ms(self) -> float | None:
        """The least that it ever took as it ran; None where it was not measured."""
        return min((run.median_ms for run in self.runs), default=None)

    @property
    def sure(self) -> bool:
        """Whether it was measured steadily, or more than once."""
        return len(self.runs) > 1 or any(
            run.undisturbed_ms is not None and relative_noise(run) <= UNSURE_NOISE for run in self.runs
        )


@dataclass(frozen=True)
class Table:
    """Every usable subnet, the fastest first. The arrays are not to be changed."""

    genomes: Genomes
    """(n, G)."""
    typical_ms: Floats
    """Latency at the run's typical speed, (n,); what is known to bound it counts."""
    undisturbed_ms: Floats
    """The same at undisturbed speed, (n,)."""
    bound_ms: Floats
    """The least that it took on a device that was slower than typically, or at unknown speed, (n,); else infinite."""

    def __len__(self) -> int:
        return len(self.typical_ms)


class Observations:
    """Subnets by genome."""

    def __init__(self) -> None:
        self._subnets: dict[bytes, SubnetObservations] = {}
        #: What follows from all measurements; asked far more often than it changes.
        self._tables: dict[bool, Table] = {}
        self._speed: TypicalSpeed | None = None
        self._levels: dict[str, float] = {}

    def __iter__(self) -> Iterator[SubnetObservations]:
        """In an order of their own, whichever was measured first."""
        return (self._subnets[key] for key in sorted(self._subnets))

    def of(self, genome: NDArray[np.int16]) -> SubnetObservations:
        """The subnet's observations, empty where there are none yet."""
        key = genome.tobytes()
        found = self._subnets.get(key)
        if found is None:
            found = self._subnets[key] = SubnetObservations(genome)
        return found

    # -- learning ----------------------------------------------------------------------------------------------

    def add(self, genome: NDArray[np.int16], measurement: Measurement) -> None:
        """One more run of a subnet."""
        self.of(genome).runs.append(measurement)
        name, level = measurement.reference, measurement.reference_ms
        if name is not None and level is not None:
            self._levels[name] = min(level, self._levels.get(name, level))
        self._changed()

    def add_failure(self, genome: NDArray[np.int16]) -> None:
        """A subnet could not be measured."""
        self.of(genome).failures += 1
        self._changed()

    def add_miss(self, genome: NDArray[np.int16], measurement: Measurement) -> None:
        """A run that was added already missed the target that it should have met."""
        self.of(genome).missed.append(measurement)
        self._changed()

    def _changed(self) -> None:
        self._tables.clear()
        self._speed = None

    # -- what follows ------------------------------------------------------------------------------------------

    def undisturbed_ms(self, run: Measurement) -> float | None:
        """A run's latency at undisturbed speed, restated at the fastest speed that its reference has shown."""
        if run.undisturbed_ms is None or run.reference is None or run.reference_ms is None:
            return run.undisturbed_ms
        change = self._levels[run.reference] / run.reference_ms
        return run.undisturbed_ms * change if change < _SAME_LEVEL else run.undisturbed_ms

    @property
    def regime_unix_s(self) -> float:
        """Since when the device has run at its present lasting speed, by its own clock."""
        return max((run.regime_unix_s for subnet in self for run in subnet.runs), default=0.0)

    @property
    def speed(self) -> TypicalSpeed:
        """How slow the device typically is in this run, at its present lasting speed."""
        if self._speed is None:
            runs = [run for subnet in self for run in subnet.runs if run.undisturbed_ms is not None]
            present = [run for run in runs if run.finished_unix_s >= self.regime_unix_s] or runs
            undisturbed = np.array([self.undisturbed_ms(run) for run in present], dtype=np.float64)
            medians = np.array([run.median_ms for run in present], dtype=np.float64)
            self._speed = TypicalSpeed.of(undisturbed, medians / undisturbed)
        return self._speed

    def exceeds(self, subnet: SubnetObservations, run: Measurement) -> float:
        """How far one of a subnet's runs is beyond what its others say, relative, the device's speed taken out."""
        others = [other for other in subnet.runs if other is not run]
        expected, showed = self._mean_ms(others), self.undisturbed_ms(run)
        if expected is None or showed is None:
            expected, showed = min((other.median_ms for other in others), default=run.median_ms), run.median_ms
        return showed / expected - 1.0

    def typical_ms(self, run: Measurement) -> float | None:
        """What a run says its subnet takes at the typical speed; None where it only bounds that."""
        undisturbed = self.undisturbed_ms(run)
        return None if undisturbed is None else undisturbed * self.speed.slowdown(undisturbed)

    def latency_ms(self, subnet: SubnetObservations) -> float | None:
        """What a subnet takes at the run's typical speed; None where it was not measured.

        A run on a device that was slower than typically, or at unknown speed, is an upper bound.
        """
        if not subnet.runs:
            return None
        found = math.inf
        undisturbed = self._mean_ms(subnet.runs)
        if undisturbed is not None:
            found = undisturbed * self.speed.slowdown(undisturbed)
        found = min(found, self.bound_ms(subnet))
        for run in subnet.missed:
            found = max(found, self.typical_ms(run) or run.median_ms)
        return found

    def bound_ms(self, subnet: SubnetObservations) -> float:
        """The least that a subnet took on a device that was slower than typically, or at unknown speed; or infinity."""
        return min((run.median_ms for run in subnet.runs if self._bounds(run)), default=math.inf)

    def _bounds(self, run: Measurement) -> bool:
        undisturbed = self.undisturbed_ms(run)
        if undisturbed is None:
            return True
        return run.median_ms > _CLEARLY_SLOWER * undisturbed * self.speed.slowdown(undisturbed)

    def _mean_ms(self, runs: Sequence[Measurement]) -> float | None:
        """Mean latency at undisturbed speed, weighted by precision."""
        known = [(ms, relative_noise(run) ** -2) for run in runs if (ms := self.undisturbed_ms(run)) is not None]
        if not known:
            return None
        # Exact sums do not depend on the order of arrival.
        return math.fsum(ms * precision for ms, precision in known) / math.fsum(precision for _, precision in known)

    def table(self, *, unsure: bool = False) -> Table:
        """Every measured subnet that is not quarantined; those that were measured once and badly with `unsure` only."""
        if unsure not in self._tables:
            self._tables[unsure] = self._sorted(unsure)
        return self._tables[unsure]

    def _sorted(self, unsure: bool) -> Table:
        found = [
            (ms, self.bound_ms(subnet), subnet.genome)
            for subnet in self
            if not subnet.quarantined and (unsure or subnet.sure) and (ms := self.latency_ms(subnet)) is not None
        ]
        if not found:
            return Table(np.zeros((0, 0), np.int16), np.zeros(0), np.zeros(0), np.zeros(0))
        typical, bound = np.array([(ms, bound_ms) for ms, bound_ms, _ in found], dtype=np.float64).T
        order = np.argsort(typical, kind="stable")
        typical = typical[order]
        undisturbed = np.array([self.speed.undisturbed_ms(ms) for ms in typical.tolist()])
        return Table(np.stack([genome for *_, genome in found])[order], typical, undisturbed, bound[order])

    def lessons(self) -> list[tuple[tuple[int, ...], float, float]]:
        """Every latency at undisturbed speed: genome, ms and its standard deviation, ms; sorted.

        Where hardly any is known, latencies as they ran stand in for them, with much noise: they say at least how
        subnets compare, and targets are about them.
        """
        known = self._known()
        if self._knows_speeds(known):
            return known
        return sorted([*known, *((genome, ms, _UNKNOWN_SPEED_NOISE * ms) for genome, ms in self._bounded())])

    def upper_bounds(self) -> list[tuple[tuple[int, ...], float]]:
        """Subnets of which only an upper bound is known and learned: genome and the least that it took, ms; sorted."""
        return self._bounded() if self._knows_speeds(self._known()) else []

    def _known(self) -> list[tuple[tuple[int, ...], float, float]]:
        return sorted(
            (tuple(subnet.genome.tolist()), ms, relative_noise(run) * ms)
            for subnet in self
            for run in subnet.runs
            if (ms := self.undisturbed_ms(run)) is not None
        )

    def _bounded(self) -> list[tuple[tuple[int, ...], float]]:
        return sorted(
            (tuple(subnet.genome.tolist()), min(run.median_ms for run in subnet.runs))
            for subnet in self
            if subnet.runs and all(run.undisturbed_ms is None for run in subnet.runs)
        )

    @staticmethod
    def _knows_speeds(lessons: list[tuple[tuple[int, ...], float, float]]) -> bool:
        return len({genome for genome, *_ in lessons}) >= _LEAST_KNOWN

    def noise(self) -> list[float]:
        """Relative noise of every latency at undisturbed speed, ascending."""
        return sorted(relative_noise(run) for subnet in self for run in subnet.runs if run.undisturbed_ms is not None)

    def fastest(self) -> SubnetObservations | None:
        """The subnet that took the least time as it ran, quarantined ones left out."""
        measured = [subnet for subnet in self if subnet.runs and not subnet.quarantined]
        return min(measured, key=lambda subnet: subnet.fastest_ms or math.inf, default=None)

    def fastest_within(self, target_ms: float) -> NDArray[np.int16] | None:
        """Of the subnets that were ever within the target as they ran, misses or not, the fastest at its best."""
        fastest = self.fastest()
        if fastest is None or fastest.fastest_ms is None or fastest.fastest_ms > target_ms:
            return None
        return fastest.genome

    def quarantined_within(self, target_ms: float) -> bool:
        """Whether a subnet that is not to be tried again was once measured within the target."""
        return any(s.quarantined and s.fastest_ms is not None and s.fastest_ms <= target_ms for s in self)

    def quarantined(self) -> list[NDArray[np.int16]]:
        """Subnets that are not to be tried again."""
        return [subnet.genome for subnet in self if subnet.quarantined]


def relative_noise(measurement: Measurement) -> float:
    """Standard deviation of a latency at undisturbed speed over it: within its run, and between runs."""
    within = measurement.undisturbed_half_width_percent / 100 / _HALF_WIDTH_SIGMAS
    return math.hypot(within, BETWEEN_RUNS)
