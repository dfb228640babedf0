"""How many measurements a device setting needs, and how long each takes: the arithmetic of every estimate of time.

The estimate before a search and the time left during one come from here. Two kinds of measurements differ: a *first*
one of a subnet, which counts against the budget and is coarse, and a *verification* against a target.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from fleetnas.coordinator.records.precision import AskedPrecision, PrecisionChoice, protocol_for
from fleetnas.fleet_protocol.messages import MeasurementProtocol

#: Precisions of the two kinds that a search asks for, about.
_FIRST, _VERIFICATION = AskedPrecision(3.0), AskedPrecision(1.0, sessions=3)
#: Time of a runtime session beside warm-up and timed runs, seconds: slicing the subnet, building and loading files.
_SESSION_S = 0.35
#: Time of one measurement beside its sessions, seconds: messages, planning, calibration of what is verified.
_FIRST_BESIDE_S, _VERIFICATION_BESIDE_S = 0.15, 0.5
#: Turns of references, relative to the time of the subject.
_REFERENCES = 1.2
#: A verification goes on until it is precise, which takes about this many times its least time.
_VERIFICATION_LONGER = 1.5
#: Relative standard deviation of a time that nobody has measured, and of one that earlier runs tell.
_UNKNOWN, _FROM_HISTORY = 0.45, 0.15
#: Time from the last measurement to the end of a run, seconds: winners are evaluated, results are written.
END_S = 2.0
#: Normal quantile of the interval.
_Z = 1.645


@dataclass(frozen=True)
class Habits:
    """What searches usually use, of what they may."""

    explored: float = 0.85
    """Share of the budget behind the initial design that is measured."""
    explored_deviation: float = 0.2
    verifications: float = 1.9
    """Verifications, failed ones and candidates that replace a missed winner included, per target."""
    verifications_deviation: float = 0.9


#: Seconds of one measurement, at least.
LEAST_S = 1e-3


@dataclass(frozen=True)
class Seconds:
    """Seconds of one measurement of each kind on a device setting, all that belongs to it included."""

    first: float
    verification: float
    deviation: float = _UNKNOWN
    """Relative standard deviation of both."""

    def __post_init__(self) -> None:
        # Results that were stored in one moment, as after a crash, seem to have taken no time at all.
        for name in ("first", "verification"):
            object.__setattr__(self, name, max(getattr(self, name), LEAST_S))


@dataclass(frozen=True)
class Counts:
    """Measurements that a device setting has left: expected, and the variance of their number."""

    first: float = 0.0
    first_variance: float = 0.0
    verification: float = 0.0
    verification_variance: float = 0.0

    def shared_over(self, boards: int, verifying: int | None = None) -> Counts:
        """Return the part of one of equal boards: first measurements are shared, verifications by `verifying` of them.

        None: every board verifies.
        """
        part = min(verifying or boards, boards) / boards
        return Counts(
            self.first / boards,
            self.first_variance / boards**2,
            self.verification * part,
            self.verification_variance * part,
        )

    def seconds(self, each: Seconds) -> float:
        """Return the expected time, seconds."""
        return self.first * each.first + self.verification * each.verification

    def variance(self, each: Seconds) -> float:
        """Return the variance of the time that comes from the numbers, seconds squared."""
        return self.first_variance * each.first**2 + self.verification_variance * each.verification**2


@dataclass(frozen=True)
class Interval:
    """A time with its bounds, seconds."""

    expected: float
    least: float
    most: float


def seconds_by_protocol(protocol: MeasurementProtocol, precision: PrecisionChoice) -> Seconds:
    """Return what measurements take on a device that is not known, by the protocol alone."""
    if precision == "fixed":
        each = _session_s(protocol, 1.0) * protocol.sessions
        return Seconds(each + _FIRST_BESIDE_S, each + _VERIFICATION_BESIDE_S)
    first, again = protocol_for(protocol, _FIRST), protocol_for(protocol, _VERIFICATION)
    return Seconds(
        _session_s(first, 1.0) * first.sessions + _FIRST_BESIDE_S,
        _session_s(again, _VERIFICATION_LONGER / again.sessions) * again.sessions + _VERIFICATION_BESIDE_S,
    )


def _session_s(protocol: MeasurementProtocol, share: float) -> float:
    """Return the time of a session that takes this share of the protocol's least time."""
    return _SESSION_S + protocol.warmup_s + _REFERENCES * min(share * protocol.min_s, protocol.max_s)


@dataclass(frozen=True)
class SearchState:
    """Where a search stands on one device setting."""

    measured: int = 0
    """Measurements that counted against the budget."""
    verified: int = 0
    """Verifications so far."""
    open_targets: int = 0
    """Targets without a verified winner."""
    met_targets: int = 0
    verifying: bool = False
    """Whether the search has turned to verification."""


def counts_of_search(budget: int, initial_design: int, stands: SearchState, habits: Habits) -> Counts:
    """Count what a search has left on one device setting; budget and initial design are those of its plan."""
    measured = stands.measured
    left = max(0, budget - measured)
    design_left = min(left, max(0, initial_design - measured))
    free = left - design_left
    if stands.verifying:
        # A better subnet may turn up, and the budget allows to try it.
        first, deviation = 0.1 * free, 0.15 * free
    else:
        whole = max(0, budget - initial_design)
        expected = habits.explored * whole - max(0, measured - initial_design)
        # The search may end at any time from here on, and rarely ends at once.
        first = min(float(free), max(expected, 0.3 * free))
        deviation = min(habits.explored_deviation * whole, 0.6 * free)
        first += design_left
    targets = stands.open_targets + stands.met_targets
    # A target that is met may be challenged by a better subnet yet.
    least = stands.open_targets + 0.3 * stands.met_targets
    again = max(habits.verifications * targets - stands.verified, least)
    unsure = max(stands.open_targets + 0.6 * stands.met_targets, 0.25)
    return Counts(first, deviation**2, again, habits.verifications_deviation**2 * unsure)


def time_of_device(work: Iterable[tuple[Counts, Seconds]], widen: float = 1.0) -> Interval:
    """Add up the settings of one device, which it measures one after the other.

    `widen` is for the longest of many devices, which is known less well than any one of them.
    """
    parts = list(work)
    expected = sum(counts.seconds(each) for counts, each in parts)
    of_numbers = sum(counts.variance(each) for counts, each in parts)
    # The settings of a device are slow together.
    of_pace = sum(counts.seconds(each) * each.deviation for counts, each in parts) ** 2
    deviation = _Z * widen * math.sqrt(of_numbers + of_pace)
    # A time that may be twice as long may be half as long: the interval is about its logarithm.
    ratio = math.exp(min(deviation / expected, 4.0)) if expected > 0 else 1.0
    most = expected * ratio if deviation <= expected else expected + (math.e - 1.0) * deviation
    return Interval(expected, expected / ratio, most)


def longest(devices: Iterable[Interval]) -> Interval:
    """Return the time in which all devices are ready, which work at the same time."""
    found = list(devices)
    if not found:
        return Interval(0.0, 0.0, 0.0)
    return Interval(
        max(each.expected for each in found), max(each.least for each in found), max(each.most for each in found)
    )


def widening(devices: int) -> float:
    """Return the factor on the deviation of each of this number of devices where the longest of them counts."""
    return 1.0 + 0.2 * math.log(max(1, devices))


def history_deviation(measurements: int) -> float:
    """Return the relative deviation of times that this number of earlier measurements tells."""
    return _UNKNOWN if not measurements else _FROM_HISTORY + (_UNKNOWN - _FROM_HISTORY) / math.sqrt(1 + measurements)
