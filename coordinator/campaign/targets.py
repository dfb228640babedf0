"""Latency targets as asked for: a list of milliseconds, or `auto:N`, resolved for each device setting."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from fleet_protocol.errors import UsageError

MAX_TARGETS = 64
#: Automatic targets keep this far from the fastest and the slowest subnet, as shares of their latencies: at the
#: very edge there is nothing to choose from.
_LOWEST, _HIGHEST = 1.15, 0.92
_SAME = 0.005


@dataclass(frozen=True)
class TargetRequest:
    """Either `fixed_ms`, ascending, or `automatic` many targets."""

    fixed_ms: tuple[float, ...] = ()
    automatic: int = 0

    @classmethod
    def parse(cls, text: str) -> TargetRequest:
        """From `20,30.5` (milliseconds) or `auto:4`; `UsageError` otherwise."""
        word = text.strip().lower()
        if word.startswith("auto:"):
            count = word.removeprefix("auto:")
            if not count.isdecimal() or not 1 <= int(count) <= MAX_TARGETS:
                raise _syntax(text, f"auto: takes a number from 1 to {MAX_TARGETS}")
            return cls(automatic=int(count))
        found: set[float] = set()
        for part in word.split(","):
            try:
                value = float(part.strip().removesuffix("ms"))
            except ValueError:
                raise _syntax(text, f"{part.strip()!r} is not a number") from None
            if not math.isfinite(value) or value <= 0:
                raise _syntax(text, f"{part.strip()!r} is not above 0")
            found.add(value)
        if len(found) > MAX_TARGETS:
            raise _syntax(text, f"there are {len(found)} targets and at most {MAX_TARGETS} can be searched at once")
        return cls(fixed_ms=tuple(sorted(found)))

    @property
    def count(self) -> int:
        """How many targets each device setting gets."""
        return self.automatic or len(self.fixed_ms)

    def __str__(self) -> str:
        return f"auto:{self.automatic}" if self.automatic else ",".join(f"{ms:g}" for ms in self.fixed_ms)

    def resolve(self, fastest_ms: float, slowest_ms: float) -> tuple[float, ...]:
        """The targets of a device setting whose subnets were measured from `fastest_ms` to `slowest_ms`, ascending.

        Automatic ones are spread evenly in the logarithm over that range and rounded to as few digits as keep them
        apart and inside.
        """
        if not self.automatic:
            return self.fixed_ms
        low, high = fastest_ms * _LOWEST, max(slowest_ms * _HIGHEST, fastest_ms * _LOWEST * 1.01)
        steps = [0.5] if self.automatic == 1 else [i / (self.automatic - 1) for i in range(self.automatic)]
        exact = [low * (high / low) ** step for step in steps]
        for digits in (2, 3, 4):
            rounded = [_significant(value, digits) for value in exact]
            near = all(abs(r / e - 1) < 0.2 / max(self.automatic, 4) for r, e in zip(rounded, exact, strict=True))
            apart = all(b > a * (1 + _SAME) for a, b in itertools.pairwise(rounded))
            if near and apart and rounded[0] > fastest_ms * 1.1:
                return tuple(rounded)
        return tuple(exact)


def _significant(value: float, digits: int) -> float:
    return float(f"{value:.{digits}g}")


def _syntax(text: str, why: str) -> UsageError:
    return UsageError(f"targets {text!r} cannot be used: {why}; give milliseconds such as 20,30,40 or auto:4")
