"""What one device setting has shown so far: its measurements and failures per subnet."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fleet_protocol.messages import Measurement
from supernet_export.spaces.base import Genomes

#: Two runs of one file on one device differ by about this much, relative, however steady each of them is.
BETWEEN_RUNS = 0.01
#: A measurement that the agent calls noisy is trusted this much less.
_NOISY_FACTOR = 2.0
#: A measurement whose own noise is beyond this says little; one more is taken before it is relied on.
UNSURE_NOISE = 0.15
#: A (device setting, subnet) that failed this often is left alone.
QUARANTINE_FAILURES = 2
#: 95 % half-width of a normal distribution in standard deviations.
_HALF_WIDTH_SIGMAS = 1.96


@dataclass
class SubnetEvidence:
    """One subnet on one device setting."""

    genome: NDArray[np.int16]
    medians_ms: list[float] = field(default_factory=list)
    relative_noise: list[float] = field(default_factory=list)
    over_target_ms: float = 0.0
    """Slowest re-measurement that missed a target; such a miss counts whatever other runs said."""
    failures: int = 0
    _mean_ms: float = 0.0

    @property
    def quarantined(self) -> bool:
        return self.failures >= QUARANTINE_FAILURES

    @property
    def latency_ms(self) -> float | None:
        """What it takes, as far as it was measured while the device was not slowed down."""
        return max(self._mean_ms, self.over_target_ms) if self.medians_ms else None

    @property
    def sure(self) -> bool:
        """Measured steadily, or more than once."""
        return len(self.medians_ms) > 1 or min(self.relative_noise, default=1.0) <= UNSURE_NOISE

    @property
    def best_ms(self) -> float | None:
        """The least that it ever took; None where it was not measured."""
        return min(self.medians_ms, default=None)

    def add(self, measurement: Measurement) -> None:
        """One more run that was not slowed down."""
        self.medians_ms.append(measurement.median_ms)
        self.relative_noise.append(relative_noise(measurement))
        # Exact sums do not depend on the order of arrival.
        precision = [noise**-2 for noise in self.relative_noise]
        weighted_ms = math.fsum(p * ms for p, ms in zip(precision, self.medians_ms, strict=True))
        self._mean_ms = weighted_ms / math.fsum(precision)


class Evidence:
    """Subnets by genome."""

    def __init__(self) -> None:
        self._subnets: dict[bytes, SubnetEvidence] = {}
        #: What `measured` said, without and with those that are not sure; asked far more often than it changes.
        self._measured: dict[bool, tuple[Genomes, NDArray[np.float64]]] = {}

    def __iter__(self) -> Iterator[SubnetEvidence]:
        """In an order of their own, whoever was measured first."""
        return (self._subnets[key] for key in sorted(self._subnets))

    def of(self, genome: NDArray[np.int16]) -> SubnetEvidence:
        """The subnet's evidence, empty where there is none yet."""
        key = genome.tobytes()
        found = self._subnets.get(key)
        if found is None:
            found = self._subnets[key] = SubnetEvidence(genome)
        return found

    def add(self, genome: NDArray[np.int16], measurement: Measurement) -> None:
        """One more run of a subnet that was not slowed down."""
        self.of(genome).add(measurement)
        self._measured.clear()

    def add_failure(self, genome: NDArray[np.int16]) -> None:
        """A subnet could not be measured."""
        self.of(genome).failures += 1
        self._measured.clear()

    def add_miss(self, genome: NDArray[np.int16], latency_ms: float) -> None:
        """A subnet took this long where it should have met a target."""
        found = self.of(genome)
        found.over_target_ms = max(found.over_target_ms, latency_ms)
        self._measured.clear()

    def measured(self, *, unsure: bool = False) -> tuple[Genomes, NDArray[np.float64]]:
        """Every subnet with a usable latency that is not quarantined: genomes (n, G) and ms (n,), fastest first.

        Those that were measured once and badly are among them with `unsure` only. The arrays are not to be changed.
        """
        if unsure not in self._measured:
            self._measured[unsure] = self._sorted(unsure)
        return self._measured[unsure]

    def _sorted(self, unsure: bool) -> tuple[Genomes, NDArray[np.float64]]:
        found = [
            (s.latency_ms, s.genome)
            for s in self
            if s.latency_ms is not None and not s.quarantined and (unsure or s.sure)
        ]
        if not found:
            return np.zeros((0, 0), np.int16), np.zeros(0)
        latency = np.array([ms for ms, _ in found], dtype=np.float64)
        order = np.argsort(latency, kind="stable")
        return np.stack([genome for _, genome in found])[order], latency[order]

    def fastest_within(self, target_ms: float) -> NDArray[np.int16] | None:
        """Of the subnets that were ever within the target, misses or not, the fastest at its best."""
        best_ms, best = target_ms, None
        for subnet in self:
            if subnet.best_ms is not None and subnet.best_ms <= best_ms and not subnet.quarantined:
                best_ms, best = subnet.best_ms, subnet.genome
        return best

    def quarantined_within(self, target_ms: float) -> bool:
        """Whether a subnet that is not to be tried again was once measured within the target."""
        return any(s.quarantined and s.best_ms is not None and s.best_ms <= target_ms for s in self)

    def quarantined(self) -> list[NDArray[np.int16]]:
        """Subnets that are not to be tried again."""
        return [subnet.genome for subnet in self if subnet.quarantined]


def relative_noise(measurement: Measurement) -> float:
    """Standard deviation of a measurement over its median: within its run, and between runs."""
    within = measurement.half_width_percent / 100 / _HALF_WIDTH_SIGMAS
    noise = math.hypot(within, BETWEEN_RUNS)
    return noise * _NOISY_FACTOR if measurement.quality == "noisy" else noise
