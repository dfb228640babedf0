"""Base of all messages, and values inside a measurement: the device's state, and percentiles of run times."""

from __future__ import annotations

from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fleetnas.device_profiles.quantities import (
    Celsius,
    Load,
    Megahertz,
    Milliseconds,
    Milliwatts,
    Percent,
    Percentile,
)
from fleetnas.device_profiles.text_fields import PlainText

#: Percentiles of run times that one measurement reports.
MAX_PERCENTILES = 8
BatteryState: TypeAlias = Literal["charging", "discharging", "idle"]


class Message(BaseModel):
    """Base of every message and of the values inside one."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Conditions(Message):
    """The device's state around a measurement; what has no sensor is None."""

    temperature_c: Celsius | None = None
    clock_mhz: Megahertz | None = None
    governor: PlainText | None = Field(default=None, max_length=32)
    throttled: bool | None = None
    load_1min: Load | None = None
    battery_percent: Percent | None = None
    battery_state: BatteryState | None = None
    battery_temperature_c: Celsius | None = None
    power_mw: Milliwatts | None = Field(
        default=None, description="at rest before a measurement, within its blocks after it"
    )


class PercentileTime(Message):
    """A percentile of the run times of single inferences, all sessions pooled with equal weight."""

    percentile: Percentile
    value_ms: Milliseconds
    low_ms: Milliseconds | None = Field(
        default=None, description="lower end of its 95 % interval, which holds for every distribution"
    )
    high_ms: Milliseconds | None = Field(default=None, description="upper end; null where the runs are too few for one")
    runs: int = Field(ge=1, le=2**31 - 1, description="run times that it is taken from")

    @model_validator(mode="after")
    def _interval_holds_it(self) -> PercentileTime:
        least_ms = self.value_ms if self.low_ms is None else self.low_ms
        most_ms = self.value_ms if self.high_ms is None else self.high_ms
        if not least_ms <= self.value_ms * 1.001 or not self.value_ms <= most_ms * 1.001:
            raise ValueError(
                f"a percentile is within its interval; it is {self.value_ms:g} of {least_ms:g}..{most_ms:g}"
            )
        return self
