"""The sentinel: one small subnet, measured again and again, that tells the device's speed from the subnets'.

It brackets every measurement. Compared with its own reference it shows heat, a busy neighbour or a changed clock,
whatever the subnets' own latencies are.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

from agent.child_messages import SentinelOrder, SentinelReading
from fleet_protocol.messages import MeasurementProtocol

#: More than this over its reference, the device is too slow for its measurements to count.
SLOW_RATIO = 1.10
#: A reading this old says nothing about now, and the sentinel is measured before the subnet too.
FRESH_S = 15.0
#: Share of a measurement's own time that one reading may take, and the least that resolves 10 %.
_TIME_SHARE = 0.04
_MIN_S = 0.02
#: The first reading is the reference of all others, and is taken this many times as long.
_REFERENCE_FACTOR = 4
#: So many measurements in a row on a device that is slow, but steadily so, show its lasting speed: a phone or a laptop
#: that boosts for its first seconds only would otherwise never give a measurement that counts.
STEADY_COUNT = 6


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the sentinel says about one measurement."""

    slow: bool
    #: Sentinel latency around the measurement over its reference; 1 where the difference is within its own noise.
    drift: float


@dataclass
class _Watch:
    reference_ms: float | None = None
    last: SentinelReading | None = None
    read_at: float = float("-inf")
    slow_ms: list[float] = field(default_factory=list)  #: readings after the latest measurements, all of them slow


@dataclass
class Sentinel:
    """References and last readings per bundle and setting (the key)."""

    _watches: dict[Hashable, _Watch] = field(default_factory=dict)

    def order(self, key: Hashable, protocol: MeasurementProtocol, now: float, *, accept_slow: bool) -> SentinelOrder:
        """How to bracket the next measurement; with `accept_slow` it is made however slow the device is."""
        watch = self._watches.setdefault(key, _Watch())
        first = watch.reference_ms is None
        budget_s = max(_MIN_S, _TIME_SHARE * (protocol.warmup_s + protocol.min_s))
        short = MeasurementProtocol(
            warmup_runs=2 if first else 1,
            warmup_s=budget_s / 10,
            min_runs=5,
            min_s=budget_s * (_REFERENCE_FACTOR if first else 1),
            max_s=protocol.max_s,
            blocks=1,
            half_width_percent=100.0,  # it is judged by SLOW_RATIO, and never repeated
        )
        return SentinelOrder(
            before=first or now - watch.read_at > FRESH_S or self._is_slow(watch, watch.last),
            slow_at_ms=None if watch.reference_ms is None or accept_slow else SLOW_RATIO * watch.reference_ms,
            protocol=short,
        )

    def saw_slow(self, key: Hashable, reading: SentinelReading, now: float) -> None:
        """The measurement was not made because of this reading."""
        watch = self._watches.setdefault(key, _Watch())
        watch.last, watch.read_at = reading, now

    def judge(
        self, key: Hashable, before: SentinelReading | None, after: SentinelReading | None, now: float
    ) -> Verdict:
        """The verdict on a measurement between two readings; the last known one stands in for a missing `before`."""
        watch = self._watches.setdefault(key, _Watch())
        readings = [reading for reading in (before or watch.last, after) if reading is not None]
        if not readings:
            return Verdict(slow=False, drift=1.0)
        fastest_ms = min(reading.at_most_ms for reading in readings)
        if watch.reference_ms is None or fastest_ms < watch.reference_ms / SLOW_RATIO:
            # A reference that was itself taken on a slowed device would hide every later slowness.
            watch.reference_ms = min(reading.median_ms for reading in readings)
        slow = any(self._is_slow(watch, reading) for reading in readings)
        watch.slow_ms = [*watch.slow_ms, readings[-1].median_ms][-STEADY_COUNT:] if slow else []
        if len(watch.slow_ms) == STEADY_COUNT and max(watch.slow_ms) < SLOW_RATIO * min(watch.slow_ms):
            watch.reference_ms, watch.slow_ms, slow = sorted(watch.slow_ms)[STEADY_COUNT // 2], [], False
        watch.last, watch.read_at = readings[-1], now
        mean_ms = sum(reading.median_ms for reading in readings) / len(readings)
        drift = mean_ms / watch.reference_ms
        noise = max(reading.half_width_percent for reading in readings) / 100
        return Verdict(slow=slow, drift=drift if abs(drift - 1) > noise else 1.0)

    @staticmethod
    def _is_slow(watch: _Watch, reading: SentinelReading | None) -> bool:
        """Slower than the reference by more than the reading's own uncertainty can explain."""
        return (
            reading is not None
            and watch.reference_ms is not None
            and reading.at_least_ms > SLOW_RATIO * watch.reference_ms
        )
