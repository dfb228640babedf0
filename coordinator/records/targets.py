"""Latency targets as asked for: a list of milliseconds, or `auto:N`, resolved for each device setting."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

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
    """Identity of a target on one device setting: its milliseconds, or the fingerprint of a subnet that was given."""

    target_ms: float | None
    subnet: str = ""


def ordered(keys: Iterable[TargetKey]) -> list[TargetKey]:
    """Return targets ascending, and given subnets in the order in which they come."""
    return sorted(keys, key=lambda key: key.target_ms or 0.0)


@dataclass(frozen=True)
class TargetRequest:
    """Either `fixed_ms`, ascending, or a number of `automatic` targets; neither: no targets."""

    fixed_ms: tuple[float, ...] = ()
    automatic: int = 0

    @classmethod
    def parse(cls, text: str) -> TargetRequest:
        """Parse `20,30.5` (milliseconds), `20ms,0.03s` or `auto:4`; `UsageError` otherwise."""
        word = text.strip().lower()
        if word.startswith("auto:"):
            count = word.removeprefix("auto:")
            if not count.isdecimal() or not 1 <= int(count) <= MAX_TARGETS:
                raise _syntax(text, f"auto: takes a number from 1 to {MAX_TARGETS}")
            return cls(automatic=int(count))
        found: set[float] = set()
        for part in word.split(","):
            try:
                value = milliseconds(part)
            except ValueError:
                raise _syntax(text, f"{part.strip()!r} is not a number") from None
            if not math.isfinite(value) or value <= 0:
                raise _syntax(text, f"{part.strip()!r} is not above 0")
            found.add(value)
        if len(found) > MAX_TARGETS:
            raise _syntax(text, f"there are {len(found)} targets and at most {MAX_TARGETS} can be searched at once")
        return cls(fixed_ms=tuple(sorted(found)))

    @classmethod
    def parse_stored(cls, text: str) -> TargetRequest:
        """Parse a stored request, which may be one without targets; `UsageError` otherwise."""
        return cls() if text == NO_TARGETS else cls.parse(text)

    @property
    def count(self) -> int:
        """Number of targets that each device setting gets."""
        return self.automatic or len(self.fixed_ms)

    def __str__(self) -> str:
        """Return the text that `parse_stored` reads as the same request."""
        if self.automatic:
            return f"auto:{self.automatic}"
        return ",".join(map(_exact, self.fixed_ms)) or NO_TARGETS

    def resolve(self, fastest_ms: float, slowest_ms: float, error: float = 0.0) -> ResolvedTargets:
        """Return the targets of a device setting whose subnets take from `fastest_ms` to `slowest_ms`.

        `error` is the relative standard error of the speed at which they do: a first target that is too low by that
        must leave room for more than the fastest subnet.

        Automatic targets lie evenly in the logarithm over that range, at least 5 % apart, and are rounded to as few
        digits as keep them apart and in place. A range that has no room for all of them gets fewer.
        """
        if not self.automatic:
            return ResolvedTargets(self.fixed_ms)
        low, high = fastest_ms * _LOWEST * (1.0 + error), slowest_ms * _HIGHEST
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
            rounded = [_significant(value, digits) for value in exact]
            apart = all(b >= a * LEAST_APART for a, b in itertools.pairwise(rounded))
            if apart and all(abs(r / e - 1) < _NEAR for r, e in zip(rounded, exact, strict=True)):
                return ResolvedTargets(tuple(rounded), note)
        return ResolvedTargets(tuple(exact), note)


def target_name(target_ms: float | None, subnet: str = "") -> str:
    """Name a target, or a given subnet by its fingerprint, in messages."""
    target = "" if target_ms is None else f"{target_ms:g} ms"
    return " within ".join(part for part in (f"subnet {subnet}" if subnet else "", target) if part)


def _exact(value: float) -> str:
    """Return the shortest text that reads as this number."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


def _rounded(value: float) -> float:
    return next(r for digits in (2, 3, 4, 17) if abs((r := _significant(value, digits)) / value - 1) < _NEAR)


def _significant(value: float, digits: int) -> float:
    return float(f"{value:.{digits}g}")


def _syntax(text: str, reason: str) -> UsageError:
    return UsageError(f"targets {text!r} cannot be used: {reason}; give milliseconds such as 20,30,40 or auto:4")
