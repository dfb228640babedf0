"""Follow a device's speed by the latency of its reference subnets: levels, lasting slow-downs (*regimes*), quality.

The agent keeps this, not the measuring child, which may be killed: levels that a new child reads continue the old
scale. A device that stays slow gets a new regime, and `undisturbed_ms` keeps its meaning.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field

from fleetnas.agent.measuring.levels import FASTER_RATIO
from fleetnas.agent.measuring.messages import PairedTiming
from fleetnas.agent.measuring.undisturbed import median
from fleetnas.fleet_protocol.messages import Quality

#: More than this over its lasting speed, the device was slow during a measurement.
SLOW_RATIO = 1.10
#: Measurements in a row, all slower (or all faster) than the regime and within `SLOW_RATIO` of each other, that make a
#: new regime: a governor, sustained heat, a neighbour that stays, a boost that ended. Of measurements that follow each
#: other faster than this, seconds, one counts: six coarse ones take two seconds, which nothing lasting shows within.
STEADY_COUNT, STEADY_APART_S = 6, 2.0
#: Readings in a row, some seconds apart, of a device that is waited for, that do.
STEADY_READINGS = 10
#: The reading that counts as normal follows the last readings of a reference, within these bounds about its regime.
_FOLLOWED_READINGS = 5
_MOST_FASTER, _MOST_SLOWER = 1 / 1.05, 1.10


@dataclass(frozen=True, slots=True)
class Verdict:
    """Judgement of one measurement by the device's speed."""

    quality: Quality
    #: When the present regime began, device's clock, Unix seconds.
    regime_unix_s: float
    #: Lasting slow-down of the reference in the present regime.
    regime_slowdown: float
    #: Whether this measurement completed a new regime.
    new_regime: bool


@dataclass
class _Reference:
    level_ms: float
    regime: float = 1.0
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=STEADY_COUNT))
    recent_unix_s: deque[float] = field(default_factory=lambda: deque(maxlen=STEADY_COUNT))
    noted_at: float = float("-inf")

    def note(self, slowdown: float, now: float, unix_s: float) -> None:
        """Add a reading, unless the last one was a moment ago; `now` is monotonic, in s."""
        if now - self.noted_at < STEADY_APART_S:
            return
        self.noted_at = now
        self.recent.append(slowdown)
        self.recent_unix_s.append(unix_s)

    def forget_readings(self) -> None:
        """Begin again to look for a change."""
        self.recent.clear()
        self.recent_unix_s.clear()
        self.noted_at = float("-inf")

    def set_level(self, level_ms: float) -> None:
        """Use this level from now on."""
        self.level_ms = level_ms

    def begin_regime(self, slowdown: float) -> None:
        """Begin a regime of this lasting slow-down."""
        self.regime = slowdown
        self.forget_readings()

    @property
    def normal(self) -> float:
        """The slow-down that its next reading is expected at."""
        last = list(self.recent)[-_FOLLOWED_READINGS:]
        usual = median(last) if len(last) >= 3 else self.regime
        return min(_MOST_SLOWER * self.regime, max(_MOST_FASTER * self.regime, usual))


@dataclass
class _Device:
    """One bundle and setting."""

    references: dict[str, _Reference] = field(default_factory=dict)
    #: Fingerprint, slow-down and end of the latest measurements.
    latest: deque[tuple[str, float, float]] = field(default_factory=lambda: deque(maxlen=STEADY_COUNT))
    noted_at: float = float("-inf")
    #: Slow-down and time of the latest readings of a device that is waited for.
    waiting: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=STEADY_READINGS))
    regime_unix_s: float | None = None

    def note(self, reference: str, slowdown: float, now: float, unix_s: float) -> None:
        """Add a measurement, unless the last one was a moment ago; `now` is monotonic, in s."""
        if now - self.noted_at >= STEADY_APART_S:
            self.noted_at = now
            self.latest.append((reference, slowdown, unix_s))

    def begin_regime(self, unix_s: float) -> None:
        """Begin a regime at this time; readings of the one before count no more."""
        self.regime_unix_s = unix_s
        self.forget_readings()

    def forget_readings(self) -> None:
        """Begin again to look for a change."""
        self.latest.clear()
        self.noted_at = float("-inf")


@dataclass
class SpeedTracker:
    """Levels, readings and regimes per key: bundle, setting and condition."""

    _devices: dict[Hashable, _Device] = field(default_factory=dict)

    def levels(self, key: Hashable) -> dict[str, float]:
        """Return the level of each known reference, in ms, by fingerprint."""
        return {name: known.level_ms for name, known in self._device(key).references.items()}

    def normals(self, key: Hashable) -> dict[str, float]:
        """Return the slow-down that each reference is expected at now, by fingerprint."""
        return {name: known.normal for name, known in self._device(key).references.items()}

    def learn_levels(self, key: Hashable, levels_ms: Mapping[str, float]) -> None:
        """Use the levels that the measuring child read, in ms, by fingerprint."""
        known = self._device(key).references
        regime = median([each.regime for each in known.values()]) if known else 1.0
        for name, level_ms in levels_ms.items():
            known.setdefault(name, _Reference(level_ms, regime)).set_level(level_ms)

    def lasting_slowdown(self, key: Hashable) -> float:
        """Return the slow-down of the present regime: the median of the references'."""
        known = self._device(key).references.values()
        return median([reference.regime for reference in known]) if known else 1.0

    def note_waiting(self, key: Hashable, slowdown: float, read_unix_s: float) -> bool:
        """Add a reading of a device that is waited for; return whether it has begun a new regime: it stays slow."""
        device = self._device(key)
        device.waiting.append((slowdown, read_unix_s))
        lasting = self.lasting_slowdown(key)
        steady = _is_steady_change([reading / lasting for reading, _ in device.waiting])
        if not steady or len(device.waiting) < STEADY_READINGS:
            return False
        shift = median([reading for reading, _ in device.waiting]) / lasting
        for known in device.references.values():
            known.begin_regime(known.regime * shift)
        device.begin_regime(device.waiting[0][1])
        device.waiting.clear()
        return True

    def judge(
        self, key: Hashable, timing: PairedTiming, *, throttled: bool | None, now: float, ended_unix_s: float
    ) -> Verdict:
        """Judge a measurement that ended `now`, by a monotonic clock, and at `ended_unix_s`.

        `throttled` is the board's own report, None if it gives none.
        """
        device = self._device(key)
        device.waiting.clear()
        if device.regime_unix_s is None:
            device.begin_regime(ended_unix_s)
        known = self._reference(device, timing)
        known.note(timing.slowdown, now, ended_unix_s)
        device.note(timing.reference, timing.slowdown, now, ended_unix_s)
        new_regime = self._shared_regime(device) or self._own_regime(device, known)
        slow = timing.slowdown > SLOW_RATIO * known.regime or bool(throttled)
        quality: Quality = "slowed" if slow else "noisy" if timing.timing.noisy else "ok"
        began_unix_s = ended_unix_s if device.regime_unix_s is None else device.regime_unix_s
        return Verdict(quality, began_unix_s, known.regime, new_regime)

    def _reference(self, device: _Device, timing: PairedTiming) -> _Reference:
        known = device.references.setdefault(timing.reference, _Reference(timing.reference_ms))
        if timing.reference_ms < FASTER_RATIO * known.level_ms:  # earlier readings are on another scale
            known.forget_readings()
            device.forget_readings()
        known.set_level(timing.reference_ms)
        return known

    def _device(self, key: Hashable) -> _Device:
        return self._devices.setdefault(key, _Device())

    def _shared_regime(self, device: _Device) -> bool:
        """Whether the latest measurements, whatever their references, agree on another lasting speed."""
        relative = [slowdown / device.references[name].regime for name, slowdown, _ in device.latest]
        if not _is_steady_change(relative):
            return False
        shift = median(relative)
        for name, known in device.references.items():
            own = [slowdown for latest, slowdown, _ in device.latest if latest == name]
            known.begin_regime(median(own) if own else known.regime * shift)
        device.begin_regime(device.latest[0][2])
        return True

    def _own_regime(self, device: _Device, known: _Reference) -> bool:
        """Whether the latest readings of one reference agree: contention that does not slow the others."""
        if not _is_steady_change([slowdown / known.regime for slowdown in known.recent]):
            return False
        device.begin_regime(known.recent_unix_s[0])
        known.begin_regime(median(list(known.recent)))
        return True


def _is_steady_change(relative: Iterable[float]) -> bool:
    values = list(relative)
    if len(values) < STEADY_COUNT or max(values) > SLOW_RATIO * min(values):
        return False
    return min(values) > SLOW_RATIO or max(values) < 1 / SLOW_RATIO
