"""Options of times, counts and sizes, with units."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fleetnas.fleet_protocol import units
from fleetnas.fleet_protocol.errors import UsageError


def seconds(option: str, least: float = 0.0) -> Callable[[str | float], float]:
    """Make the parser of an option's time, which returns seconds; its `UsageError` names the option."""

    def parse(text: str | float) -> float:
        if not isinstance(text, str):  # a default value
            return text
        try:
            value = units.seconds(text)
        except ValueError:
            raise UsageError(f"{option} {text[:80]!r} is no time; give such as 90s, 500ms, 2h or 1h30m") from None
        if value < least:
            raise UsageError(f"{option} {text[:80]!r} is too short; give at least {least:g}s")
        return value

    parse.__name__ = "time"
    return parse


def quantity(option: str, text: str | None, known: Mapping[str, float]) -> float | None:
    """Parse an option's number with one of the known units; `UsageError` names the option. None where not given."""
    if text is None:
        return None
    try:
        return units.quantity(text, known)
    except ValueError:
        raise UsageError(
            f"{option} {text[:80]!r} is no quantity above 0; give a number with one of the units "
            f"{', '.join(unit for unit in known if unit)}, or without a unit"
        ) from None
