"""Read times, counts and sizes with units, as people write them: `20ms`, `1h30m`, `4M`, `300k`, `8MiB`.

One parser for each kind of quantity; both command lines use them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

#: Milliseconds in each unit of time, the longest first.
TIMES: Mapping[str, float] = {"h": 3600e3, "min": 60e3, "m": 60e3, "s": 1e3, "ms": 1.0, "us": 1e-3, "µs": 1e-3}
#: Counts, such as of parameters.
COUNTS: Mapping[str, float] = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}
#: Bytes.
SIZES: Mapping[str, float] = {
    "": 1.0,
    "B": 1.0,
    **{f"{prefix}B": 1000.0**power for power, prefix in enumerate("kMG", start=1)},
    **{f"{prefix}iB": 1024.0**power for power, prefix in enumerate("KMG", start=1)},
}
_DIGITS = r"(?:[0-9]{1,18}\.?[0-9]{0,18}|\.[0-9]{1,18})"
_NUMBER = rf"{_DIGITS}(?:e[+-]?[0-9]{{1,3}})?"
_PLAIN = re.compile(_NUMBER, re.IGNORECASE)
_PART = re.compile(rf"({_DIGITS})\s*(h|min|ms|m|us|µs|s)\s*", re.IGNORECASE)
_QUANTITY = re.compile(rf"({_NUMBER})\s*([a-z]*)", re.IGNORECASE)


def seconds(text: str) -> float:
    """Return the seconds in a time such as `90s`, `500ms`, `1h30m` or `2.5` (seconds); `ValueError` if it is none."""
    return _time_ms(text) / 1e3 if _PLAIN.fullmatch(text.strip()) is None else _finite(text, float(text))


def milliseconds(text: str) -> float:
    """Return the milliseconds in a time such as `20`, `20ms` or `0.02s`; `ValueError` if it is none."""
    return _time_ms(text) if _PLAIN.fullmatch(text.strip()) is None else _finite(text, float(text))


def quantity(text: str, units: Mapping[str, float]) -> float:
    """Return a number with one of the units, in any case, or without one; `ValueError` if it is none above 0."""
    known = {unit.lower(): factor for unit, factor in units.items()}
    found = _QUANTITY.fullmatch(text.strip())
    if found is None or found[2].lower() not in known:
        raise ValueError(f"{text!r} is no quantity")
    value = float(found[1]) * known[found[2].lower()]
    if not value or not math.isfinite(value):
        raise ValueError(f"{text!r} is no quantity above 0")
    return value


def _time_ms(text: str) -> float:
    """Return the milliseconds in a time whose numbers have units, the longest unit first."""
    from decimal import Decimal

    word = text.strip()
    parts = [(part[0], Decimal(part[1]), TIMES[part[2].lower()]) for part in _PART.finditer(word)]
    factors = [factor for _, _, factor in parts]
    if not parts or "".join(whole for whole, _, _ in parts) != word or factors != sorted(set(factors), reverse=True):
        raise ValueError(f"{text!r} is no time")
    return _finite(text, float(sum(number * Decimal(str(factor)) for _, number, factor in parts)))


def _finite(text: str, value: float) -> float:
    if not math.isfinite(value):
        raise ValueError(f"{text!r} is no time")
    return value
