"""Quality of the measurements of one device setting: counts by quality, slow-downs and lasting speeds."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from fleetnas.fleet_protocol.messages import Measurement

#: One in this many slowed measurements is tolerated without a warning.
_TOLERATED = 4
#: Median slow-downs of two regimes up to this ratio are one lasting speed.
_SAME_SPEED = 1.05
#: Measurements of a device setting from which on its running search warns; one that has ended warns of any number.
FEWEST_TO_WARN = 8

Finding: TypeAlias = Literal["regime_changed", "often_slowed"]
"""Finding after one more measurement: a new lasting speed, or for the first time more than a quarter slowed."""


@dataclass(frozen=True)
class DataQuality:
    """Counts over all measurements of one device setting, verifications included."""

    ok: int = 0
    noisy: int = 0
    slowed: int = 0
    unknown_speed: int = 0
    """Of all these, the ones whose latency at undisturbed speed is not known."""
    largest_slowdown: float | None = None
    """Largest latency as it ran over latency at undisturbed speed; None where no measurement gives one."""
    regimes: int = 0
    """Lasting speeds at which the device ran."""

    @classmethod
    def of(cls, measurements: Iterable[Measurement]) -> DataQuality:
        """Count measurements, in any order."""
        tally = QualityTally()
        for measurement in measurements:
            tally.add(measurement)
        return tally.quality

    @property
    def measured(self) -> int:
        """All measurements."""
        return self.ok + self.noisy + self.slowed

    @property
    def slowed_share(self) -> float:
        """Share of slowed measurements in [0, 1]; 0 where nothing was measured."""
        return self.slowed / self.measured if self.measured else 0.0

    @property
    def often_slowed(self) -> bool:
        """Whether more than a quarter was slowed."""
        return self.slowed * _TOLERATED > self.measured


@dataclass(frozen=True)
class Regime:
    """One lasting speed of a device."""

    since_unix_s: float | None
    """Beginning of the speed by the device's own clock; None where its agent did not report one."""
    slowdown: float | None
    """Median slow-down of its measurements; None where none gives one."""
    measurements: int


class QualityTally:
    """Counts measurements as they arrive."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._unknown_speed = 0
        self._largest: float | None = None
        self._slowdowns: dict[float, list[float | None]] = {}
        self._regimes = self._announced = 0
        self._warned = False

    @property
    def measured(self) -> int:
        """All measurements so far."""
        return sum(self._counts.values())

    @property
    def quality(self) -> DataQuality:
        """The counts so far."""
        return DataQuality(
            ok=self._counts["ok"],
            noisy=self._counts["noisy"],
            slowed=self._counts["slowed"],
            unknown_speed=self._unknown_speed,
            largest_slowdown=self._largest,
            regimes=self._regimes,
        )

    def add(self, measurement: Measurement) -> tuple[Finding, ...]:
        """Count one measurement; returns the findings to announce."""
        self._counts[measurement.quality] += 1
        slowdown = measurement.slowdown
        if slowdown is None:
            self._unknown_speed += 1
        else:
            self._largest = max(slowdown, self._largest or slowdown)
        findings: list[Finding] = []
        self._slowdowns.setdefault(measurement.regime_unix_s, []).append(slowdown)
        known = {since: slowdowns for since, slowdowns in self._slowdowns.items() if since}
        # Merging sorts all slow-downs; with one speed there is nothing to merge.
        self._regimes = len(_merged(known)) if len(known) > 1 else 1
        if known and 0 < self._announced < self._regimes:
            findings.append("regime_changed")
        self._announced = max(self._announced, self._regimes if known else 0)
        if self._warned or not self._counts["slowed"]:
            return tuple(findings)
        quality = self.quality
        if quality.often_slowed and quality.measured >= FEWEST_TO_WARN:
            self._warned = True
            findings.append("often_slowed")
        return tuple(findings)


def regimes_of(measurements: Iterable[Measurement]) -> tuple[Regime, ...]:
    """Group measurements by the lasting speed at which they were taken, the earliest speed first."""
    groups: dict[float, list[float | None]] = {}
    for measurement in measurements:
        groups.setdefault(measurement.regime_unix_s, []).append(measurement.slowdown)
    return tuple(_merged(groups))


def _merged(groups: Mapping[float, Sequence[float | None]]) -> list[Regime]:
    """Return regimes in order of their beginning; one at the speed of the one before is merged with it.

    That happens after a restart of the agent.
    """
    found: list[Regime] = []
    for since in sorted(groups):
        known = [slowdown for slowdown in groups[since] if slowdown is not None]
        regime = Regime(since or None, statistics.median(known) if known else None, len(groups[since]))
        last = found[-1] if found else None
        if last is not None and last.since_unix_s is not None and _same_speed(last.slowdown, regime.slowdown):
            found[-1] = Regime(
                last.since_unix_s,
                regime.slowdown if last.slowdown is None else last.slowdown,
                last.measurements + regime.measurements,
            )
        else:
            found.append(regime)
    return found


def _same_speed(first: float | None, second: float | None) -> bool:
    return first is None or second is None or max(first, second) <= _SAME_SPEED * min(first, second)
