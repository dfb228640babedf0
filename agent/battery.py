"""The battery of the device, and the rule by which a device rests instead of measuring.

Sources: the kernel's `power_supply` class; Termux, whose apps may not read it, through Termux:API; psutil elsewhere.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from pydantic import Field

from agent.device_files import RunProgram, number, psutil_call, run_program, text
from fleet_protocol.messages import Conditions, Message

BatteryState: TypeAlias = Literal["charging", "discharging", "idle"]
#: `status` of a power supply, in the kernel's words and in Termux:API's.
_STATES: dict[str, BatteryState] = {
    "charging": "charging",
    "discharging": "discharging",
    "not charging": "idle",
    "not_charging": "idle",
    "full": "idle",
}
_TERMUX_PROGRAM = "termux-battery-status"
#: It takes up to a second to answer, and a battery changes slowly.
_TERMUX_EVERY_S = 30.0


class BatteryRule(Message):
    """When a device waits: a low battery and one that is charged hot both slow the processor."""

    min_percent: float = Field(default=30.0, ge=0, le=100, description="wait below it, on battery; 0: never")
    max_charging_c: float = Field(default=40.0, gt=0, description="wait while charging at this temperature or above")

    def objection(self, now: Conditions) -> str:
        """Why not to measure, with what ends it; empty where nothing speaks against it."""
        low = now.battery_percent is not None and now.battery_percent < self.min_percent
        if low and now.battery_state in ("discharging", None):
            return f"battery at {now.battery_percent:.0f} %, below {self.min_percent:g} %: plug the device in"
        heat = now.battery_temperature_c
        if now.battery_state == "charging" and heat is not None and heat >= self.max_charging_c:
            return f"battery charges at {heat:.0f} C, {self.max_charging_c:g} C or more: unplug or cool the device"
        return ""


@dataclass(frozen=True, slots=True)
class BatteryReading:
    """What is known of the battery now."""

    percent: float | None = None
    state: BatteryState | None = None
    temperature_c: float | None = None


class Battery:
    """The battery of the device whose files lie under `root`."""

    def __init__(
        self, root: Path = Path("/"), run: RunProgram = run_program, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._run, self._clock = run, clock
        self._own_device = root == Path("/")
        self._folder = find_battery(root)
        self._termux = shutil.which(_TERMUX_PROGRAM) if self._own_device and self._folder is None else None
        self._termux_reading, self._termux_at = BatteryReading(), float("-inf")

    def read(self) -> BatteryReading:
        """Its state; what is not told is None."""
        if self._folder is not None:
            tenths_c = number(self._folder / "temp")
            return BatteryReading(
                percent=number(self._folder / "capacity"),
                state=_STATES.get(text(self._folder / "status").lower()),
                temperature_c=tenths_c / 10 if tenths_c is not None else None,
            )
        if self._termux is not None:
            return self._ask_termux(self._termux)
        found = psutil_call("sensors_battery") if self._own_device else None
        if found is None:
            return BatteryReading()
        plugged: dict[bool | None, BatteryState] = {True: "idle", False: "discharging"}
        return BatteryReading(percent=float(found.percent), state=plugged.get(found.power_plugged))

    def _ask_termux(self, program: str) -> BatteryReading:
        if self._clock() - self._termux_at >= _TERMUX_EVERY_S:
            self._termux_reading = parse_termux(self._run([program]))
            self._termux_at = self._clock()
            if self._termux_reading.percent is None:
                self._termux = None  # without the app of that name the program only hangs
        return self._termux_reading


def find_battery(root: Path) -> Path | None:
    """The folder of the battery that feeds the device; those of mice and headsets do not."""
    for folder in sorted(root.glob("sys/class/power_supply/*")):
        own = text(folder / "type") == "Battery" and text(folder / "scope") != "Device"
        if own and number(folder / "capacity") is not None:
            return folder
    return None


def parse_termux(said: str) -> BatteryReading:
    """What `termux-battery-status` printed."""
    try:
        fields = json.loads(said)
        return BatteryReading(
            percent=float(fields["percentage"]),
            state=_STATES.get(str(fields.get("status", "")).lower()),
            temperature_c=float(fields["temperature"]) if fields.get("temperature") is not None else None,
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return BatteryReading()
