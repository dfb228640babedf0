"""Measurements and failures of one device setting, and the latencies of its subnets.

All derived values are a function of the set of measurements, whatever the order in which they came.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fleetnas.coordinator.tuning.board_speeds import BoardSpeeds
from fleetnas.coordinator.tuning.derived_latencies import DerivedLatencies
from fleetnas.coordinator.tuning.session_noise import DEFAULT_SCATTER, noise_of
from fleetnas.coordinator.tuning.subnet_observations import Run, SubnetObservations
from fleetnas.coordinator.tuning.typical_speed import TypicalSpeed
from fleetnas.fleet_protocol.messages import Measurement
from fleetnas.supernet_export.spaces.base import Genomes

Floats = NDArray[np.float64]

#: An agent that finds a reference faster than this share of its level calibrated it on a slowed device: latencies that
#: were stated at the old level are restated. Smaller differences are those between two sessions of one subnet.
_SAME_LEVEL = 0.92
#: Standard deviation with which latencies as they ran stand in for unknown ones, relative.
_UNKNOWN_SPEED_NOISE = 0.15


@dataclass(frozen=True)
class Table:
    """Measured subnets, the fastest first. The arrays are not to be changed."""

    genomes: Genomes
    """(n, G)."""
    typical_ms: Floats
    """Latency at the run's typical speed, (n,), no more than its known bounds."""
    undisturbed_ms: Floats
    """The same at undisturbed speed, (n,)."""
    bound_ms: Floats
    """Least latency on a device that was slower than typically, or at unknown speed, (n,); else infinite."""

    def __len__(self) -> int:
        return len(self.typical_ms)


class Observations:
    """Subnets by genome."""

    def __init__(self, speeds: BoardSpeeds | None = None) -> None:
        """`speeds` of the boards of a class, which measurements are added to; None: there is one device."""
        self._board = ""
        self._speeds = speeds
        self._subnets: dict[bytes, SubnetObservations] = {}
        #: The least level of every reference, by board and by how many references it has.
        self._levels: dict[tuple[str, int], tuple[float, ...]] = {}
        #: Place of each run's reference among its levels.
        self._places: dict[Run, int] = {}
        #: Values derived from all measurements; read far more often than they change.
        self._derived: DerivedLatencies | None = None
        self._tables: dict[bool, Table] = {}
        self._training_set: list[tuple[tuple[int, ...], float, float]] | None = None
        self.version = 0
        """Grows with every change."""

    def __iter__(self) -> Iterator[SubnetObservations]:
        """Iterate in the order of genomes, not of arrival."""
        return (self._subnets[key] for key in sorted(self._subnets))

    def of(self, genome: NDArray[np.int16]) -> SubnetObservations:
        """Return the subnet's observations, empty where there are none yet."""
        key = genome.tobytes()
        found = self._subnets.get(key)
        if found is None:
            found = self._subnets[key] = SubnetObservations(genome)
        return found

    # -- learning ----------------------------------------------------------------------------------------------

    def measured_by(self, board: str) -> None:
        """Note that the measurements to be added are those of a board of a class."""
        self._board = board

    def add(self, genome: NDArray[np.int16], measurement: Measurement, *, awaited: bool = False) -> Run:
        """Add one more run of a subnet; `awaited` where it waited for a fast device."""
        run = Run.of(measurement, self._board, self._speeds)
        self.of(genome).add(run, awaited=awaited)
        if self._speeds is not None:
            noise = noise_of(run.as_it_ran, DEFAULT_SCATTER)
            self._speeds.add(genome.tobytes(), self._board, run.ran_undisturbed_ms, noise)
        count = self._board, len(run.levels_ms)
        self._levels[count] = tuple(map(min, run.levels_ms, self._levels.get(count, run.levels_ms)))
        self._changed()
        return run

    def add_failure(self, genome: NDArray[np.int16]) -> None:
        """Count a failed measurement of a subnet."""
        self.of(genome).count_failure()
        self._changed()

    def add_miss(self, genome: NDArray[np.int16], run: Run) -> None:
        """Mark a run, added already, as one that missed the target that it was for."""
        self.of(genome).mark_missed(run)
        self._changed()

    def _changed(self) -> None:
        self.version += 1
        self._tables.clear()
        self._derived = self._training_set = None

    # -- derived values ----------------------------------------------------------------------------------------

    def undisturbed_ms(self, run: Run) -> float | None:
        """Return a run's latency at undisturbed speed, restated at the fastest speed of its reference."""
        if run.undisturbed_ms is None or run.reference_ms is None or not run.levels_ms:
            return run.undisturbed_ms
        place = self._places.get(run)
        if place is None:
            apart = [abs(level_ms - run.reference_ms) for level_ms in run.levels_ms]
            place = self._places[run] = apart.index(min(apart))
        change = self._levels.get((run.board, len(run.levels_ms)), run.levels_ms)[place] / run.levels_ms[place]
        return run.undisturbed_ms * change if change < _SAME_LEVEL else run.undisturbed_ms

    @property
    def regime_unix_s(self) -> float:
        """Start of the device's present lasting speed, by its own clock; 0 of a class, whose boards differ in it."""
        if self._speeds is not None and self._speeds.several:
            return 0.0
        return max((run.regime_unix_s for subnet in self._subnets.values() for run in subnet.runs), default=0.0)

    @property
    def speed_since_unix_s(self) -> float:
        """Start of the time from which the typical speed is taken, by the device's clock; 0: all measurements."""
        return self._all.speed_since_unix_s

    @property
    def changed_for_good(self) -> bool:
        """Whether the device has taken on another lasting speed during the run; an agent's restart is none."""
        return self._all.changed_for_good

    @property
    def speed(self) -> TypicalSpeed:
        """Typical slow-down of the device in this run, at its present lasting speed."""
        return self._all.speed

    @property
    def noise(self) -> float:
        """Relative noise of the more precise first measurements, among which winners are chosen: the lower quartile.

        Of latencies at undisturbed speed; 0 where none is known.
        """
        known = self._all.noise
        return known[len(known) // 4] if known else 0.0

    @property
    def session_scatter(self) -> float:
        """Standard deviation of a subnet's latency between runtime sessions, relative."""
        return self._all.session_scatter

    @property
    def knows_speeds(self) -> bool:
        """Whether enough subnets were measured at a known speed for the others' latencies to be bounds."""
        return self._all.knows_speeds

    def exceeds(self, subnet: SubnetObservations, run: Run) -> float:
        """Return how far a run is beyond the subnet's other runs, relative, the device's speed taken out."""
        others = [other for other in subnet.runs if other is not run]
        known = [
            (ms, noise_of(other, self.session_scatter) ** -2) for other in others if (ms := self.undisturbed_ms(other))
        ]
        showed = self.undisturbed_ms(run)
        if known and showed is not None:
            # Exact sums do not depend on the order of arrival.
            total = math.fsum(precision for _, precision in known)
            return showed * total / math.fsum(ms * precision for ms, precision in known) - 1.0
        return run.median_ms / min((other.median_ms for other in others), default=run.median_ms) - 1.0

    def typical_ms(self, run: Run) -> float | None:
        """Return the latency of a run's subnet at the typical speed, ms; None where the run only bounds it."""
        undisturbed = self.undisturbed_ms(run)
        return None if undisturbed is None else undisturbed * self.speed.slowdown(undisturbed)

    def latency_ms(self, subnet: SubnetObservations) -> float | None:
        """Return the latency of a subnet at the run's typical speed, ms; None where it was not measured.

        A run on a device that was slower than typically, or at unknown speed, is an upper bound.
        """
        place = self._all.places.get(subnet.genome.tobytes())
        return None if place is None else float(self._all.typical_ms[place])

    def table(self, *, unsure: bool = False) -> Table:
        """Return the measured subnets that are not quarantined; `unsure` adds those measured once, unsteadily."""
        if unsure not in self._tables:
            found = self._all
            trusted = [place for place, subnet in enumerate(found.subnets) if not subnet.quarantined]
            sure = [place for place in trusted if found.subnets[place].sure]
            table = _table(found, trusted if unsure else sure)
            self._tables[unsure] = table
            if len(trusted) == len(sure):
                self._tables[not unsure] = table
        return self._tables[unsure]

    def training_set(self) -> list[tuple[tuple[int, ...], float, float]]:
        """Return every latency at undisturbed speed: genome, ms and its standard deviation, ms; sorted.

        Where hardly any is known, latencies as they ran stand in for them, with much noise: they rank the
        subnets at least, and targets are about them. The list is not to be changed.
        """
        if self._training_set is None:
            self._training_set = self._make_training_set()
        return self._training_set

    def _make_training_set(self) -> list[tuple[tuple[int, ...], float, float]]:
        known = [
            (tuple(subnet.genome.tolist()), ms, noise_of(run, self.session_scatter) * ms)
            for subnet in self._all.subnets
            for run in subnet.runs
            if (ms := self.undisturbed_ms(run)) is not None
        ]
        if not self.knows_speeds:
            known += [(genome, ms, _UNKNOWN_SPEED_NOISE * ms) for genome, ms in self._bounded()]
        return sorted(known)

    def upper_bounds(self) -> list[tuple[tuple[int, ...], float]]:
        """Return the subnets of which only an upper bound is known: genome and least latency, ms; sorted."""
        return sorted(self._bounded()) if self.knows_speeds else []

    def _bounded(self) -> list[tuple[tuple[int, ...], float]]:
        return [
            (tuple(subnet.genome.tolist()), min(run.median_ms for run in subnet.runs))
            for subnet in self._all.subnets
            if all(run.undisturbed_ms is None for run in subnet.runs)
        ]

    def fastest(self) -> SubnetObservations | None:
        """Return the subnet with the least latency as it ran, without quarantined ones; None where none is measured."""
        measured = [subnet for subnet in self._all.subnets if not subnet.quarantined]
        return min(measured, key=lambda subnet: subnet.fastest_ms or math.inf, default=None)

    def fastest_within(self, target_ms: float) -> NDArray[np.int16] | None:
        """Return the fastest subnet that was ever within the target as it ran, missed or not; None where none was."""
        fastest = self.fastest()
        if fastest is None or fastest.fastest_ms is None or fastest.fastest_ms > target_ms:
            return None
        return fastest.genome

    def quarantined_within(self, target_ms: float) -> bool:
        """Whether a subnet that is not to be tried again was once measured within the target."""
        return any(s.quarantined and s.fastest_ms is not None and s.fastest_ms <= target_ms for s in self)

    def quarantined(self) -> list[NDArray[np.int16]]:
        """Return the subnets that are not to be tried again."""
        return [subnet.genome for subnet in self if subnet.quarantined]

    @property
    def _all(self) -> DerivedLatencies:
        if self._derived is None:
            self._derived = DerivedLatencies(self, self.regime_unix_s, self.undisturbed_ms)
        return self._derived


def _table(found: DerivedLatencies, kept: list[int]) -> Table:
    """Return the table of the subnets at places `kept`."""
    rows = np.array(kept, dtype=np.intp)
    order = rows[np.argsort(found.typical_ms[rows], kind="stable")]
    genomes = [found.subnets[place].genome for place in order.tolist()]
    typical = found.typical_ms[order]
    return Table(
        np.array(genomes) if genomes else np.zeros((0, 0), np.int16),
        typical,
        found.speed.undisturbed_of(typical),
        found.bound_ms[order],
    )
