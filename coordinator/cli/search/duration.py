"""Durations on the command line, such as `90s`, `45m` or `1h30m`."""

from __future__ import annotations

import re

from fleetnas.fleet_protocol.errors import UsageError

_FORM = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?")
_SECONDS = (3600.0, 60.0, 1.0)
#: A year: longer is a typing error.
_MOST_S = 366 * 86400.0


def parse_duration(option: str, text: str) -> float:
    """Parse a duration; returns seconds. `UsageError`, which names the option, where it is none or not above 0."""
    found = _FORM.fullmatch(text.strip().lower().replace(" ", ""))
    if found is None or not any(found.groups()):
        raise UsageError(f"{option} {text!r} is no duration; give one with its unit, such as 90s, 45m, 2h or 1h30m")
    seconds = sum(float(part or 0) * unit for part, unit in zip(found.groups(), _SECONDS, strict=True))
    if not 0 < seconds <= _MOST_S:
        raise UsageError(f"{option} {text!r} must be longer than 0s and at most a year; give another duration")
    return seconds
