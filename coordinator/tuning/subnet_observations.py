"""Measurements and failures of one subnet on one device setting."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from fleetnas.coordinator.tuning.board_speeds import BoardSpeeds
from fleetnas.fleet_protocol.messages import Measurement, PercentileTime
from fleetnas.fleet_protocol.student_t import Z95, student_t95

#: A measurement whose own noise is beyond this says little; one more is taken before it is relied on.
UNSURE_NOISE = 0.15
#: A (device setting, subnet) that failed this often is left alone.
QUARANTINE_FAILURES = 2


def noise_within(measurement: Measurement) -> float:
    """Return the relative standard deviation of a latency at undisturbed speed, as its own samples show it."""
    sigmas = Z95 if measurement.sessions == 1 else student_t95(measurement.sessions - 1)
    return measurement.undisturbed_half_width_percent / 100 / sigmas


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """Values of one measurement that a search needs; a whole `Measurement` takes 10 KiB. Runs are told by identity."""

    ran_ms: float
    """As it ran."""
    ran_undisturbed_ms: float | None
    """At the undisturbed speed of the board that ran it."""
    within: float
    """Standard deviation of `undisturbed_ms` as its own samples show it, relative; of several sessions all of it."""
    sessions: int
    """Runtime sessions that it is averaged over."""
    session_variance: float | None
    """Variance of the logarithms of their latencies as they ran; None where there is one session."""
    noisy: bool
    reference_ms: float | None
    levels_ms: tuple[float, ...]
    regime_unix_s: float
    finished_unix_s: float
    model_sha256: str
    board: str = ""
    """The board of a class that ran it."""
    speeds: BoardSpeeds | None = None
    """Speeds of that class; None: latencies are those of the board that ran it."""
    mean_ms: float | None = None
    """Mean of the timed inferences; of older agents that of the raw times that they keep."""
    energy_mj: float | None = None
    percentiles: tuple[PercentileTime, ...] = ()

    @property
    def median_ms(self) -> float:
        """Latency as it ran; of a board of a class, at the speed for which the class's winners are chosen."""
        return self.ran_ms if self.speeds is None else self.ran_ms / self.speeds.factor(self.board)

    @property
    def undisturbed_ms(self) -> float | None:
        """Latency at undisturbed speed, of a class at the same speed; None where it is not known."""
        ran_ms = self.ran_undisturbed_ms
        return ran_ms if self.speeds is None or ran_ms is None else ran_ms / self.speeds.factor(self.board)

    @property
    def as_it_ran(self) -> Run:
        """The same run with the latencies of the board that ran it."""
        return self if self.speeds is None else replace(self, speeds=None)

    @classmethod
    def of(cls, measurement: Measurement, board: str = "", speeds: BoardSpeeds | None = None) -> Run:
        """Take over a measurement, of a board of a class with its speeds."""
        return cls(
            measurement.median_ms,
            measurement.undisturbed_ms,
            noise_within(measurement),
            measurement.sessions,
            _variance(measurement.session_medians_ms),
            measurement.quality == "noisy",
            measurement.reference_ms,
            measurement.levels_ms,
            measurement.regime_unix_s,
            measurement.finished_unix_s,
            measurement.model_sha256,
            board,
            speeds,
            measurement.mean_ms or _mean_ms(measurement.times_us),
            measurement.energy_mj,
            measurement.percentiles,
        )


def _mean_ms(times_us: Sequence[float]) -> float | None:
    return math.fsum(times_us) / len(times_us) / 1000.0 if times_us else None


def _variance(session_medians_ms: Sequence[float]) -> float | None:
    return statistics.variance(map(math.log, session_medians_ms)) if len(session_medians_ms) > 1 else None


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

    def add(self, run: Run, *, awaited: bool) -> None:
        """Add one more run; `awaited` where it waited for a fast device."""
        self.runs.append(run)
        if awaited:
            self.awaited.append(run)

    def count_failure(self) -> None:
        """Count a failed measurement."""
        self.failures += 1

    def mark_missed(self, run: Run) -> None:
        """Mark a run as one that missed the target that it was for."""
        self.missed.append(run)

    @property
    def quarantined(self) -> bool:
        """Whether it failed so often that it is left alone."""
        return self.failures >= QUARANTINE_FAILURES

    @property
    def fastest_ms(self) -> float | None:
        """Least latency as it ran, ms; None where it was not measured."""
        return min((run.median_ms for run in self.runs), default=None)

    @property
    def sure(self) -> bool:
        """Whether it was measured steadily, or more than once."""
        return len(self.runs) > 1 or any(
            run.undisturbed_ms is not None and run.within <= UNSURE_NOISE for run in self.runs
        )
