"""Define bounds of the numbers and texts that devices report, each once, for profiles and for messages.

They are wide: every value of an honest device is within them. A value beyond them comes from a broken sensor, a fault
or a lie, and would break arithmetic that is sound for every real device.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias, TypeVar

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from fleetnas.device_profiles.text_fields import PlainText

#: The last second of the year 9999, which is as far as dates can be written.
LATEST_UNIX_S = 253_402_300_799.0
#: Latencies, ms: from a picosecond, with inner loops, to about a day.
LATENCY_RANGE_MS = (1e-9, 1e8)
#: The largest factor between two latencies of one subnet on one device.
MAX_FACTOR = 1e6
#: A tag: a name, perhaps of a kind, such as `class:pi4`. No comma and no `*`, which part and match names.
TAG_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.:-]{0,63}$"
#: Tags of one device.
MAX_TAGS = 16


def _between(least: float, most: float) -> Any:
    return Field(ge=least, le=most, allow_inf_nan=False)


Count: TypeAlias = Annotated[int, Field(ge=0, le=2**53)]
Milliseconds: TypeAlias = Annotated[float, _between(*LATENCY_RANGE_MS)]
Microseconds: TypeAlias = Annotated[float, _between(1e-6, 1e11)]
#: A time that may be none, ms.
DurationMs: TypeAlias = Annotated[float, _between(0, 1e8)]
#: A time that may be none, s: up to 30 years.
Seconds: TypeAlias = Annotated[float, _between(0, 1e9)]
#: How long something may take, s.
LimitSeconds: TypeAlias = Annotated[float, _between(1e-3, 1e9)]
UnixSeconds: TypeAlias = Annotated[float, _between(0, LATEST_UNIX_S)]
#: Half-width of an interval in percent of a median; one stall of seconds among samples of microseconds makes millions.
HalfWidthPercent: TypeAlias = Annotated[float, _between(0, 1e9)]
Percent: TypeAlias = Annotated[float, _between(0, 100)]
#: A percentile of run times, percent.
Percentile: TypeAlias = Annotated[float, _between(50, 99.99)]
Share: TypeAlias = Annotated[float, _between(0, 1)]
#: One latency over another.
Factor: TypeAlias = Annotated[float, _between(1 / MAX_FACTOR, MAX_FACTOR)]
Celsius: TypeAlias = Annotated[float, _between(-273.15, 1000)]
Megahertz: TypeAlias = Annotated[float, _between(0, 1e6)]
Load: TypeAlias = Annotated[float, _between(0, 1e6)]
Milliwatts: TypeAlias = Annotated[float, _between(0, 1e9)]
Millijoules: TypeAlias = Annotated[float, _between(0, 1e12)]
#: Gflop/s, GB/s.
Throughput: TypeAlias = Annotated[float, _between(1e-9, 1e9)]
Megabytes: TypeAlias = Annotated[int, Field(ge=1, le=10**9)]
CoreNumber: TypeAlias = Annotated[int, Field(ge=0, le=4095)]
ShortText: TypeAlias = Annotated[PlainText, Field(max_length=64)]
#: A name that the owner of a device gives to it and to others, such as `camera` or `class:pi4`.
Tag: TypeAlias = Annotated[str, Field(pattern=TAG_PATTERN, max_length=64)]
Tags: TypeAlias = Annotated[tuple[Tag, ...], Field(max_length=MAX_TAGS, description="names that its owner gave it")]
#: Random mark of one start of a machine's kernel: agents with the same mark measure in turn. Empty: not known.
HostMark: TypeAlias = Annotated[
    str, Field(pattern=r"^([0-9a-f]{16})?$", max_length=16, description="the same for all agents of one machine")
]
#: An execution provider as its runtime calls it: never empty, and nothing that a spreadsheet takes for a formula.
Provider: TypeAlias = Annotated[str, Field(pattern=r"^[A-Za-z0-9][ -~]{0,63}$", max_length=64)]

M = TypeVar("M", bound=BaseModel)


def is_plausible(quantity: Any, value: object) -> bool:
    """Whether `value` is within the bounds of `quantity`, one of the types above."""
    try:
        TypeAdapter(quantity).validate_python(value)
    except ValidationError:
        return False
    return True


def of_readings(kind: type[M], **readings: Any) -> M:
    """Make a `kind` from readings of a device's sensors and files.

    A reading beyond its bounds is left out, like that of a missing sensor.
    """
    try:
        return kind(**readings)
    except ValidationError as error:
        broken = {fault["loc"][0] for fault in error.errors(include_url=False, include_input=False) if fault["loc"]}
    return kind(**{name: value for name, value in readings.items() if name not in broken})
