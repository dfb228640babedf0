"""Targets as asked for: milliseconds, `auto:N`, and targets of other kinds, resolved for each device setting."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

from fleetnas.coordinator.records.target_kinds import Target, TargetKind, exact
from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.fleet_protocol.units import milliseconds

MAX_TARGETS = 64
#: Text of a request without targets, as plans of given subnets may have.
NO_TARGETS = "none"
#: Automatic targets keep this far from the fastest and the slowest subnet, as shares of their latencies: the fastest
#: subnet must meet the first one when it is measured again, and the last one must still rule something out.
_LOWEST, _HIGHEST = 1.1, 0.98
#: Two automatic targets are apart by this factor or more.
LEAST_APART = 1.05
#: How far rounding may move an automatic target, relative.
_NEAR = 0.015


@dataclass(frozen=True)
class ResolvedTargets:
    """Targets of one device setting, ms, ascending; `note` is why there are fewer than were asked for."""

    targets_ms: tuple[float, ...]
    note: str = ""


class TargetKey(NamedTuple):
    """Identity of a target on one device setting: its milliseconds, or the fingerprint of a subnet that was given.

    `target` is the text of a target of another kind than latency, as `Target.parse` reads it; else empty.
    """

    target_ms: float | None
    subnet: str = ""
    target: str = ""


def key_of(target: Target) -> TargetKey:
    """Return the identity of a target of another kind than latency."""
    return TargetKey(target.target_ms, target=target.text)


def ordered(keys: Iterable[TargetKey]) -> list[TargetKey]:
    """Return latencies ascending, then other kinds of targets; given subnets in the order in which they come."""
    return sorted(keys, key=lambda key: (Target.parse(key.target).order if key.target else (), key.target_ms or 0.0))


@dataclass(frozen=True)
class TargetRequest:
    """Either `fixed_ms`, ascending, or a number of `automatic` targets, with `others`; none of them: no targets."""

    fixed_ms: tuple[float, ...] = ()
    automatic: int = 0
    others: tuple[Target, ...] = ()
    """Targets of other kinds than latency, sorted."""

    @classmethod
    def parse(cls, text: str) -> TargetRequest:
        """Parse `20,30.5` (milliseconds), `20ms,0.03s`, `auto:4`, or with others `20,p95:33`; else `UsageError`."""
        automatic = 0
        found: set[float] = set()
        others: set[Target] = set()
        for part in text.split(","):
            word = part.strip().lower()
            if word.startswith("auto:"):
                count = word.removeprefix("auto:")
                if not count.isdecimal() or not 1 <= int(count) <= MAX_TARGETS or automatic:
                    raise _syntax(text, f"auto: takes a number from 1 to {MAX_TARGETS}, once")
                automatic = int(count)
            elif ":" in word:
                try:
                    others.add(Target.parse(word))
                except UsageError as error:
                    raise _syntax(text, str(error)) from None
            else:
                found.add(_milliseconds(text, word))
        if automatic and found:
            raise _syntax(text, "auto: chooses all targets that are milliseconds; leave out one or the other")
        _check_count(text, automatic + len(found) + len(others))
        return cls(tuple(sorted(found)), automatic, tuple(sorted(others, key=lambda target: target.order)))

    @classmethod
    def parse_stored(cls, text: str) -> TargetRequest:
        """Parse a stored request, which may be one without targets; `UsageError` otherwise."""
        return cls() if text == NO_TARGETS else cls.parse(text)

    @property
    def count(self) -> int:
        """Number of targets that each device setting gets."""
        return (self.automatic or len(self.fixed_ms)) + len(self.others)

    @property
    def percentiles(self) -> tuple[float, ...]:
        """The percentiles of run times that its targets are about, ascending."""
        return tuple(sorted({each.percentile for each in self.others if each.kind is TargetKind.PERCENTILE}))

    @property
    def floors(self) -> tuple[Target, ...]:
        """The accuracies that are to be kept."""
        return tuple(each for each in self.others if each.kind is TargetKind.ACCURACY)

    def with_target(self, target: Target) -> TargetRequest:
        """Return the request with one more target of another kind; `UsageError` where they are too many."""
        others = tuple(sorted({*self.others, target}, key=lambda each: each.order))
        _check_count(target.text, self.count + 1)
        return replace(self, others=others)

    def __str__(self) -> str:
        """Return the text that `parse_stored` reads as the same request."""
        latencies = [f"auto:{self.automatic}"] if self.automatic else [exact(ms) for ms in self.fixed_ms]
        return ",".join([*latencies, *(target.text for target in self.others)]) or NO_TARGETS

    def resolve(self, fastest_ms: float, slowest_ms: float, error: float = 0.0) -> ResolvedTargets:
        """Return the targets of a device setting whose subnets take from `fastest_ms` to `slowest_ms`.

        `error` is the relative standard error of the speed at which they do: a first target that is too low by that
        must leave room for more than the fastest subnet.

        Automatic targets lie evenly in the logarithm over that range, at least 5 % apart, and are rounded to as few
        digits as keep them apart and in place. A range that has no room for all of them gets fewer.
        """
        if not self.automatic:
            return ResolvedTargets(self.fixed_ms)
        low, high = lowest_target(fastest_ms, error), slowest_ms * _HIGHEST
        room = 1 + int(math.log(high / low) / math.log(LEAST_APART) + 1e-9) if high > low else 1
        count, note = min(self.automatic, room), ""
        if count < self.automatic:
            note = (
                f"the subnets take from {fastest_ms:.3g} to {slowest_ms:.3g} ms here: there is room for {count} of "
                f"{self.automatic} targets that are {100 * LEAST_APART - 100:.0f} % apart"
            )
        if count == 1:
            return ResolvedTargets((_rounded(max(low, math.sqrt(fastest_ms * slowest_ms))),), note)
        exact = [low * (high / low) ** (i / (count - 1)) for i in range(count)]
        for digits in (2, 3, 4):
            rounded = [significant(value, digits) for value in exact]
            apart = all(b >= a * LEAST_APART for a, b in itertools.pairwise(rounded))
            if apart and all(abs(r / e - 1) < _NEAR for r, e in zip(rounded, exact, strict=True)):
                return ResolvedTargets(tuple(rounded), note)
        return ResolvedTargets(tuple(exact), note)


def lowest_target(fastest_ms: float, error: float) -> float:
    """Return the lowest automatic target above the fastest subnet's latency, which has that relative standard error."""
    return fastest_ms * _LOWEST * (1.0 + error)


def target_label(target_ms: float | None, target: str = "") -> str:
    """Name a target with its unit; `target` is the text of one of another kind than latency. Empty: there is none."""
    if target:
        return Target.parse(target).label
    return "" if target_ms is None else f"{target_ms:g} ms"


def target_name(target_ms: float | None, subnet: str = "", target: str = "") -> str:
    """Name a target, or a given subnet by its fingerprint, in messages."""
    target = target_label(target_ms, target)
    return " within ".join(part for part in (f"subnet {subnet}" if subnet else "", target) if part)


def _milliseconds(text: str, word: str) -> float:
    try:
        value = milliseconds(word)
    except ValueError:
        raise _syntax(text, f"{word!r} is not a number") from None
    if not math.isfinite(value) or value <= 0:
        raise _syntax(text, f"{word!r} is not above 0")
    return value


def _check_count(text: str, count: int) -> None:
    if count > MAX_TARGETS:
        raise _syntax(text, f"there are {count} targets and at most {MAX_TARGETS} can be searched at once")


def _rounded(value: float) -> float:
    return next(r for digits in (2, 3, 4, 17) if abs((r := significant(value, digits)) / value - 1) < _NEAR)


def significant(value: float, digits: int) -> float:
    """Round to that many significant digits."""
    return float(f"{value:.{digits}g}")


def _syntax(text: str, reason: str) -> UsageError:
    return UsageError(
        f"targets {text!r} cannot be used: {reason}; give milliseconds such as 20,30,40 or auto:4, or p95:33, fps:30, "
        "energy:5mJ, accuracy:75"
    )
