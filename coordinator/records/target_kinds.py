"""Kinds of targets: latency, a percentile of run times, inferences per second, energy, and an accuracy to keep."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Literal, TypeAlias

from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.fleet_protocol.units import milliseconds

#: What a subnet that keeps an accuracy has the least of.
Minimised: TypeAlias = Literal["latency", "energy", "parameters"]
MINIMISED: tuple[Minimised, ...] = ("latency", "energy", "parameters")
#: Least and greatest percentile that can be asked for, percent.
LEAST_PERCENTILE, MOST_PERCENTILE = 50.0, 99.9
_PERCENTILE = re.compile(r"p(\d+\.?\d*)")
_ENERGY_UNITS: Mapping[str, float] = {"uj": 1e-3, "mj": 1.0, "j": 1e3}
_SUPERLATIVES: Mapping[Minimised, str] = {"latency": "fastest", "energy": "least energy", "parameters": "smallest"}


def three_digits(value: float) -> str:
    """Write a value to three significant digits, and never with an exponent from 1 on: 0.0123, 1.23, 1234."""
    return f"{value:.3g}" if abs(value) < 999.5 else f"{value:.0f}"


class TargetKind(str, Enum):
    """Quantity that a target is about; the values are stored and written to JSON."""

    LATENCY = "latency"
    """The median of the run times, at most this number of milliseconds."""
    PERCENTILE = "percentile"
    """A percentile of the run times, at most this number of milliseconds."""
    RATE = "rate"
    """Inferences per second, one after the other, at least: the reciprocal of their mean time."""
    ENERGY = "energy"
    """Energy of one inference, at most this number of millijoules."""
    ACCURACY = "accuracy"
    """Predicted top-1 accuracy, at least this percentage, with the least latency, energy or parameters."""

    def __str__(self) -> str:
        return self.value


_ORDER = tuple(TargetKind)


@dataclass(frozen=True)
class Target:
    """One target of a kind that is not the median latency."""

    kind: TargetKind
    value: float
    """Milliseconds, inferences per second, millijoules, or percent of top-1 accuracy."""
    percentile: float = 0.0
    minimise: Minimised = "latency"

    @classmethod
    def parse(cls, text: str) -> Target:
        """Parse `p95:33`, `fps:30`, `energy:5mJ` or `accuracy:75`; `UsageError` names the rule and the value."""
        word, colon, rest = text.strip().lower().partition(":")
        parse = _PARSERS.get("p" if _PERCENTILE.fullmatch(word) else word)
        if not colon or parse is None:
            raise UsageError(
                f"{text.strip()!r} is no target; give milliseconds such as 20, or p95:33, fps:30, energy:5mJ or "
                "accuracy:75"
            )
        return parse(word, rest)

    @property
    def text(self) -> str:
        """The text that `parse` reads as the same target; its identity in records."""
        value = exact(self.value)
        if self.kind is TargetKind.PERCENTILE:
            return f"p{exact(self.percentile)}:{value}"
        if self.kind is TargetKind.RATE:
            return f"fps:{value}"
        if self.kind is TargetKind.ENERGY:
            return f"energy:{value}mJ"
        return f"accuracy:{value}" + ("" if self.minimise == "latency" else f":{self.minimise}")

    @property
    def label(self) -> str:
        """Name with its unit, for people."""
        if self.kind is TargetKind.PERCENTILE:
            return f"p{exact(self.percentile)} {self.value:g} ms"
        if self.kind is TargetKind.RATE:
            return f"{self.value:g} fps"
        if self.kind is TargetKind.ENERGY:
            return f"{self.value:g} mJ"
        return f"{_SUPERLATIVES[self.minimise]} at {self.value:g} %"

    @property
    def target_ms(self) -> float | None:
        """The latency that it asks for, ms: of a percentile or of the mean; None where it is about another quantity."""
        if self.kind is TargetKind.RATE:
            return 1000.0 / self.value
        return self.value if self.kind is TargetKind.PERCENTILE else None

    @property
    def unit(self) -> str:
        """Unit of `value`."""
        return {TargetKind.RATE: "fps", TargetKind.ENERGY: "mJ", TargetKind.ACCURACY: "%"}.get(self.kind, "ms")

    @property
    def most_cost(self) -> float:
        """Limit of the cost that is compared: ms or mJ; infinite where an accuracy is to be kept."""
        if self.kind is TargetKind.ENERGY:
            return self.value
        return math.inf if self.target_ms is None else self.target_ms

    def shown_value(self, cost: float) -> float:
        """Convert a cost, ms or mJ, to the target's own unit."""
        return 1000.0 / cost if self.kind is TargetKind.RATE else cost

    def is_within(self, value: float) -> bool:
        """Tell whether a value in the target's own unit is within it."""
        at_least = self.kind in (TargetKind.RATE, TargetKind.ACCURACY)
        return value >= self.value * (1 - 1e-12) if at_least else value <= self.value * (1 + 1e-12)

    @property
    def order(self) -> tuple[int, float, float, str]:
        """Key that sorts targets of all kinds."""
        return _ORDER.index(self.kind), self.percentile, self.value, self.minimise


def kind_of_target(text: str) -> TargetKind:
    """Return the kind of a target in records, whose text is empty where it is a latency."""
    return Target.parse(text).kind if text else TargetKind.LATENCY


def exact(value: float) -> str:
    """Return the shortest text that reads as this number."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


def number(text: str, what: str, parse: Callable[[str], float] = float) -> float:
    """Parse a number above 0; `UsageError` names `what` it is of."""
    try:
        value = parse(text)
    except ValueError:
        raise UsageError(f"{text.strip()!r} is not a number ({what})") from None
    if not math.isfinite(value) or value <= 0:
        raise UsageError(f"{text.strip()!r} is not above 0 ({what})")
    return value


def _percentile(word: str, rest: str) -> Target:
    found = _PERCENTILE.fullmatch(word)
    assert found is not None
    percentile = float(found[1])
    if not LEAST_PERCENTILE <= percentile <= MOST_PERCENTILE:
        raise UsageError(
            f"percentiles are from p{LEAST_PERCENTILE:g} to p{MOST_PERCENTILE:g}, and {word} is not; give, say, p95:33"
        )
    return Target(TargetKind.PERCENTILE, number(rest, f"milliseconds of {word}", milliseconds), percentile)


def _rate(word: str, rest: str) -> Target:
    return Target(TargetKind.RATE, number(rest.removesuffix("fps"), f"inferences per second of {word}"))


def _energy(word: str, rest: str) -> Target:
    del word
    unit = next((unit for unit in _ENERGY_UNITS if rest.endswith(unit)), "")
    if not unit:
        raise UsageError(f"energy {rest!r} has no unit; give energy:5mJ, with uJ, mJ or J")
    return Target(TargetKind.ENERGY, number(rest.removesuffix(unit), "energy per inference") * _ENERGY_UNITS[unit])


def _accuracy(word: str, rest: str) -> Target:
    value, _, minimise = rest.partition(":")
    return accuracy_floor(number(value.removesuffix("%"), f"percent of {word}"), minimise or "latency")


def accuracy_floor(percent: float, minimise: str = "latency") -> Target:
    """Return the target to keep a top-1 accuracy, percent, with the least of `minimise`; `UsageError` otherwise."""
    if not 0 < percent < 100:
        raise UsageError(f"an accuracy floor is a percentage between 0 and 100, such as 75; found {percent:g}")
    known = next((name for name in MINIMISED if name == minimise), None)
    if known is None:
        raise UsageError(f"{minimise!r} cannot be minimised; give one of {', '.join(MINIMISED)}")
    return Target(TargetKind.ACCURACY, percent, minimise=known)


_PARSERS: Mapping[str, Callable[[str, str], Target]] = {
    "p": _percentile,
    "fps": _rate,
    "energy": _energy,
    "accuracy": _accuracy,
}
