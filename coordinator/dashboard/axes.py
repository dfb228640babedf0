"""Axes of a figure: which values they show, where these lie, and the ticks beside them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

#: Values that lie further apart than this factor are shown on a logarithmic axis.
_WIDE = 5.0
#: Ticks to aim at.
_TICKS = 6
#: Room beside the outermost values, as a share of the axis.
_ROOM = 0.04


@dataclass(frozen=True)
class Axis:
    """One axis over [low, high]; `logarithmic` ones need values above 0."""

    label: str
    low: float
    high: float
    logarithmic: bool = False

    @classmethod
    def around(
        cls, label: str, values: Iterable[float], *, wide: bool = False, least: float = 0.0, floor: float | None = None
    ) -> Axis:
        """Make an axis that shows all finite `values`.

        With `wide` it is logarithmic where they lie far apart. It covers at least `least`; `floor` is always on it.
        """
        known = [value for value in values if math.isfinite(value)]
        if floor is not None:
            known.append(floor)
        if not known:
            return cls(label, 0.0, 1.0)
        low, high = min(known), max(known)
        if wide and low > 0 and high > _WIDE * low:
            room = (high / low) ** _ROOM
            return cls(label, low / room, high * room, logarithmic=True)
        missing = max(0.0, least - (high - low)) or (0.0 if high > low else abs(high) * 0.1 or 1.0)
        low, high = low - missing / 2, high + missing / 2
        room = (high - low) * _ROOM
        return cls(label, floor if floor is not None and low >= floor else low - room, high + room)

    def share(self, value: float) -> float:
        """Return the place of a value, 0 at the low end and 1 at the high one; values beyond lie on the ends."""
        bounded = min(max(value, self.low), self.high)
        if self.logarithmic:
            return math.log(bounded / self.low) / math.log(self.high / self.low)
        return (bounded - self.low) / (self.high - self.low)

    def ticks(self) -> list[tuple[float, str]]:
        """Return the values that are marked, with their texts."""
        if self.logarithmic:
            found = self._of_decades((1, 2, 5))
            if len(found) < 3:
                found = self._of_decades((1, 1.5, 2, 3, 4, 5, 7))
            if len(found) > _TICKS + 2:
                found = self._of_decades((1,))
            return [(value, f"{value:g}") for value in found]
        step = _step((self.high - self.low) / _TICKS)
        digits = max(0, -math.floor(math.log10(step) + 1e-9))
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [(number * step, f"{number * step:.{digits}f}") for number in range(first, last + 1)]

    def _of_decades(self, factors: tuple[float, ...]) -> list[float]:
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        exact = [float(f"{factor * 10.0**decade:.3g}") for decade in decades for factor in factors]
        return [value for value in exact if self.low <= value <= self.high]


def _step(least: float) -> float:
    """Return the smallest of 1, 2, 2.5 and 5 times a power of ten that is at least `least`."""
    power: float = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= least * (1 - 1e-9))
