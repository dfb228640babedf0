"""Measurements and failures of one device setting per subnet, and how slow the device typically is.

Everything here is a function of the set of measurements, whatever the order in which they came.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fleetnas.coordinator.tuning.typical_speed import TypicalSpeed
from fleetnas.fleet_protocol.messages import Measurement
from fleetnas.supernet_export.spaces.base import Genomes

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
#: A lasting speed is another one where it differs by more than this factor.
_ANOTHER_SPEED = 1.05
#: Measurements of the present regime from which its typical speed is taken; of fewer, all measurements count.
_LEAST_OF_REGIME = 3
#: A run stands for at most this many times the usual time between two runs, and at least for that part of it.
_MOST_UNUSUAL = 3.0
#: Subnets of known speed from which on the others' latencies as they ran are only bounds, and the standard deviation
#: with which they stand in for unknown latencies before that, relative.
_LEAST_KNOWN, _UNKNOWN_SPEED_NOISE = 3, 0.15


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """Values of one measurement that a search needs; a whole `Measurement` takes 10 KiB. Runs are told by identity."""

    median_ms: float
    """As it ran."""
    undisturbed_ms: float | None
    noise: float
    """Of `undisturbed_ms`, a standard deviation, relative: see `relative_noise`."""
    noisy: bool
    reference_ms: float | None
    levels_ms: tuple[float, ...]
    regime_unix_s: float
    finished_unix_s: float
    model_sha256: str

    @classmethod
    def of(cls, measurement: Measurement) -> Run:
        """Take over a measurement."""
        return cls(
            measurement.median_ms,
            measurement.undisturbed_ms,
            relative_noise(measurement),
            measurement.quality == "noisy",
            measurement.reference_ms,
            measurement.levels_ms,
            measurement.regime_unix_s,
            measurement.finished_unix_s,
            measurement.model_sha256,
        )


@dataclass(slots=True)
class SubnetObservations:
    """One subnet on one device setting."""

    genome: NDArray[np.int16]
    runs: list[Run] = field(default_factory=list)
    missed: list[Run] = field(default_factory=list)
    """Re-measurements that missed a target; their latencies count even where other runs were faster."""
    awaited: list[Run] = field(default_factory=list)
    """Runs that waited for a fast device: they do not count towards the typical slow-down."""
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
            run.undisturbed_ms is not None and run.noise <= UNSURE_NOISE for run in self.runs
        )


@dataclass(frozen=True)
class Table:
    """Subnets that were measured, the fastest first. The arrays are not to be changed."""

    genomes: Genomes
    """(n, G)."""
    typical_ms: Floats
    """Latency at the run's typical speed, (n,), no more than its known bounds."""
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
        #: The least level of every reference, by how many references the device has.
        self._levels: dict[int, tuple[float, ...]] = {}
        #: Values derived from all measurements; read far more often than they change.
        self._derived: _Derived | None = None
        self._tables: dict[bool, Table] = {}

    def __iter__(self) -> Iterator[SubnetObservations]:
        """In the order of their genomes, not of arrival."""
        return (self._subnets[key] for key in sorted(self._subnets))

    def of(self, genome: NDArray[np.int16]) -> SubnetObservations:
        """The subnet's observations, empty where there are none yet."""
        key = genome.tobytes()
        found = self._subnets.get(key)
        if found is None:
            found = self._subnets[key] = SubnetObservations(genome)
        return found

    # -- learning ----------------------------------------------------------------------------------------------

    def add(self, genome: NDArray[np.int16], measurement: Measurement, *, awaited: bool = False) -> Run:
        """Add one more run of a subnet; `awaited` where it waited for a fast device."""
        subnet, run = self.of(genome), Run.of(measurement)
        subnet.runs.append(run)
        if awaited:
            subnet.awaited.append(run)
        count = len(run.levels_ms)
        self._levels[count] = tuple(map(min, run.levels_ms, self._levels.get(count, run.levels_ms)))
        self._changed()
        return run

    def add_failure(self, genome: NDArray[np.int16]) -> None:
        """Count a failed measurement of a subnet."""
        self.of(genome).failures += 1
        self._changed()

    def add_miss(self, genome: NDArray[np.int16], run: Run) -> None:
        """Mark a run, added already, as one that missed the target that it was for."""
        self.of(genome).missed.append(run)
        self._changed()

    def _changed(self) -> None:
        self._tables.clear()
        self._derived = None

    # -- what follows ------------------------------------------------------------------------------------------

    def undisturbed_ms(self, run: Run) -> float | None:
        """A run's latency at undisturbed speed, restated at the fastest speed that its reference has shown."""
        if run.undisturbed_ms is None or run.reference_ms is None or not run.levels_ms:
            return run.undisturbed_ms
        place = min(range(len(run.levels_ms)), key=lambda i: abs(run.levels_ms[i] - run.reference_ms))  # type: ignore[operator]
        change = self._levels[len(run.levels_ms)][place] / run.levels_ms[place]
        return run.undisturbed_ms * change if change < _SAME_LEVEL else run.undisturbed_ms

    @property
    def regime_unix_s(self) -> float:
        """Since when the device has run at its present lasting speed, by its own clock."""
        return max((run.regime_unix_s for subnet in self._subnets.values() for run in subnet.runs), default=0.0)

    @property
    def speed_since_unix_s(self) -> float:
        """Since when the device has run at its typical speed, by its own clock; 0 where all measurements tell it."""
        return self._all.speed_since_unix_s

    @property
    def changed_for_good(self) -> bool:
        """Whether the device has taken on another lasting speed during the run; an agent's restart is none."""
        return self._all.changed_for_good

    @property
    def speed(self) -> TypicalSpeed:
        """How slow the device typically is in this run, at its present lasting speed."""
        return self._all.speed

    @property
    def noise(self) -> float:
        """Median relative noise of the latencies at undisturbed speed; 0 where none is known."""
        known = self._all.noise
        return known[len(known) // 2] if known else 0.0

    @property
    def knows_speeds(self) -> bool:
        """Whether enough subnets were measured at a known speed for the others' latencies to be bounds."""
        return self._all.knows_speeds

    def exceeds(self, subnet: SubnetObservations, run: Run) -> float:
        """How far one of a subnet's runs is beyond what its others say, relative, the device's speed taken out."""
        others = [other for other in subnet.runs if other is not run]
        known = [(ms, other.noise**-2) for other in others if (ms := self.undisturbed_ms(other))]
        showed = self.undisturbed_ms(run)
        if known and showed is not None:
            # Exact sums do not depend on the order of arrival.
            total = math.fsum(precision for _, precision in known)
            return showed * total / math.fsum(ms * precision for ms, precision in known) - 1.0
        return run.median_ms / min((other.median_ms for other in others), default=run.median_ms) - 1.0

    def typical_ms(self, run: Run) -> float | None:
        """Latency of a run's subnet at the typical speed, ms; None where the run only bounds it."""
        undisturbed = self.undisturbed_ms(run)
        return None if undisturbed is None else undisturbed * self.speed.slowdown(undisturbed)

    def latency_ms(self, subnet: SubnetObservations) -> float | None:
        """Latency of a subnet at the run's typical speed, ms; None where it was not measured.

        A run on a device that was slower than typically, or at unknown speed, is an upper bound.
        """
        place = self._all.places.get(subnet.genome.tobytes())
        return None if place is None else float(self._all.typical_ms[place])

    def table(self, *, unsure: bool = False) -> Table:
        """Every measured subnet that is not quarantined; those that were measured once and badly with `unsure` only."""
        if unsure not in self._tables:
            found = self._all
            kept = [
                place
                for place, subnet in enumerate(found.subnets)
                if not subnet.quarantined and (unsure or subnet.sure)
            ]
            order = np.array(kept, dtype=np.intp)[np.argsort(found.typical_ms[kept], kind="stable")]
            genomes = [found.subnets[place].genome for place in order]
            typical = found.typical_ms[order]
            self._tables[unsure] = Table(
                np.stack(genomes) if genomes else np.zeros((0, 0), np.int16),
                typical,
                found.speed.undisturbed_of(typical),
                found.bound_ms[order],
            )
        return self._tables[unsure]

    def lessons(self) -> list[tuple[tuple[int, ...], float, float]]:
        """Every latency at undisturbed speed: genome, ms and its standard deviation, ms; sorted.

        Where hardly any is known, latencies as they ran stand in for them, with much noise: they say at least how
        subnets compare, and targets are about them.
        """
        known = [
            (tuple(subnet.genome.tolist()), ms, run.noise * ms)
            for subnet in self._all.subnets
            for run in subnet.runs
            if (ms := self.undisturbed_ms(run)) is not None
        ]
        if not self.knows_speeds:
            known += [(genome, ms, _UNKNOWN_SPEED_NOISE * ms) for genome, ms in self._bounded()]
        return sorted(known)

    def upper_bounds(self) -> list[tuple[tuple[int, ...], float]]:
        """Subnets of which only an upper bound is known and learned: genome and the least that it took, ms; sorted."""
        return sorted(self._bounded()) if self.knows_speeds else []

    def _bounded(self) -> list[tuple[tuple[int, ...], float]]:
        return [
            (tuple(subnet.genome.tolist()), min(run.median_ms for run in subnet.runs))
            for subnet in self._all.subnets
            if all(run.undisturbed_ms is None for run in subnet.runs)
        ]

    def fastest(self) -> SubnetObservations | None:
        """The subnet that took the least time as it ran, quarantined ones left out."""
        measured = [subnet for subnet in self._all.subnets if not subnet.quarantined]
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

    @property
    def _all(self) -> _Derived:
        if self._derived is None:
            self._derived = _Derived(self)
        return self._derived


class _Derived:
    """Values derived from all measurements together, computed once."""

    def __init__(self, observations: Observations) -> None:
        #: Measured subnets in the order of their genomes, and the place of each genome among them.
        self.subnets = [subnet for subnet in observations if subnet.runs]
        self.places = {subnet.genome.tobytes(): place for place, subnet in enumerate(self.subnets)}
        # Sorted within each subnet: not even rounding depends on the order of arrival.
        runs = [
            (place, observations.undisturbed_ms(run) or math.nan, run.median_ms, run.noise, run)
            for place, subnet in enumerate(self.subnets)
            for run in subnet.runs
        ]
        runs.sort(key=lambda run: (run[0], math.isnan(run[1]), run[1:4]))
        place = np.array([run[0] for run in runs], dtype=np.intp)
        undisturbed = np.array([run[1] for run in runs], dtype=np.float64)
        medians = np.array([run[2] for run in runs], dtype=np.float64)
        known = ~np.isnan(undisturbed)
        self.noise = sorted(run[3] for run in runs if run[1] == run[1])
        self.knows_speeds = len(np.unique(place[known])) >= _LEAST_KNOWN
        since = observations.regime_unix_s
        ended = np.array([run[4].finished_unix_s for run in runs], dtype=np.float64)
        in_regime = ended >= since
        #: Since when the typical speed is that of one regime; 0 where all measurements tell it.
        self.speed_since_unix_s = since
        if np.count_nonzero(known & in_regime) < _LEAST_OF_REGIME:
            in_regime, self.speed_since_unix_s = np.ones(len(ended), dtype=np.bool_), 0.0
        present = known & in_regime
        self.changed_for_good = _changed(medians / undisturbed, known & (ended < since), known & (ended >= since))
        awaited = {id(run) for subnet in self.subnets for run in subnet.awaited}
        unbiased = present & np.array([id(run[4]) not in awaited for run in runs], dtype=np.bool_)
        present = next((chosen for chosen in (unbiased, present) if chosen.any()), known)
        durations = _durations(ended)
        self.speed = TypicalSpeed.of(
            undisturbed[present],
            medians[present] / undisturbed[present],
            ended[present],
            durations[present],
            float(durations[present].sum() / durations[in_regime].sum()) if present.any() else 1.0,
        )
        precision = np.where(known, np.array([run[3] for run in runs], dtype=np.float64), 1.0) ** -2
        sums = np.zeros((2, len(self.subnets)))
        np.add.at(sums[0], place[known], (undisturbed * precision)[known])
        np.add.at(sums[1], place[known], precision[known])
        typical = np.full(len(self.subnets), np.inf)
        some = sums[1] > 0
        typical[some] = self.speed.typical_ms(sums[0, some] / sums[1, some])
        at_typical = np.where(known, self.speed.typical_ms(np.where(known, undisturbed, 1.0)), np.nan)
        self.bound_ms = np.full(len(self.subnets), np.inf)
        bounds = ~known | (medians > _CLEARLY_SLOWER * np.where(known, at_typical, 0.0))
        np.minimum.at(self.bound_ms, place[bounds], medians[bounds])
        #: Latency of each subnet at the run's typical speed, ms.
        self.typical_ms: Floats = np.minimum(typical, self.bound_ms)
        for row, subnet in enumerate(self.subnets):
            for run in subnet.missed:
                missed_ms = observations.undisturbed_ms(run)
                showed = run.median_ms if missed_ms is None else missed_ms * self.speed.slowdown(missed_ms)
                self.typical_ms[row] = max(self.typical_ms[row], showed)


def _changed(slowdown: Floats, before: NDArray[np.bool_], after: NDArray[np.bool_]) -> bool:
    """Whether median slow-downs before and after the present regime began tell two speeds."""
    if not before.any() or not after.any():
        return False
    was, now = float(np.median(slowdown[before])), float(np.median(slowdown[after]))
    return max(was, now) > _ANOTHER_SPEED * min(was, now)


def _durations(ended: Floats) -> Floats:
    """The time that each run stands for, seconds (n,), by when it ended: from the end of the one before, within bounds.

    A slow device measures less often, and would be seen too rarely otherwise.
    """
    order = np.argsort(ended, kind="stable")
    gaps = np.diff(ended[order], prepend=ended[order[:1]] if len(order) else 0.0)
    usual = float(np.median(gaps[1:])) if len(gaps) > 1 else 0.0
    if usual <= 0.0:
        return np.ones(len(ended))
    gaps[0] = usual
    found = np.empty(len(ended))
    found[order] = np.clip(gaps, usual / _MOST_UNUSUAL, usual * _MOST_UNUSUAL)
    return found


def relative_noise(measurement: Measurement) -> float:
    """Standard deviation of a latency at undisturbed speed over it: within its run, and between runs."""
    within = measurement.undisturbed_half_width_percent / 100 / _HALF_WIDTH_SIGMAS
    return math.hypot(within, BETWEEN_RUNS)
