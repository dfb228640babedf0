"""Read the device's battery, and decide when the device rests instead of measuring.

Sources: the kernel's `power_supply` class; Termux, whose apps may not read it, through Termux:API; psutil elsewhere.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from fleetnas.agent.host.device_files import RunProgram, number, psutil_call, run_program, text
from fleetnas.agent.host.units import battery_celsius, percent, plausible_celsius
from fleetnas.fleet_protocol.messages import BatteryState, Conditions, Message

#: `status` of a power supply, in the kernel's words and in Termux:API's.
_STATES: dict[str, BatteryState] = {
    "charging": "charging",
    "discharging": "discharging",
    "not charging": "idle",
    "not_charging": "idle",
    "full": "idle",
}
_SUPPLIES = "sys/class/power_supply"
_TERMUX_PROGRAM = "termux-battery-status"
#: It takes up to a second to answer, and a battery changes slowly.
_TERMUX_EVERY_S = 30.0


class BatteryRule(Message):
    """Bounds within which a device measures: a low battery and a hot charging one both slow the processor."""

    min_percent: float = Field(default=30.0, ge=0, le=100, description="wait below it, on battery; 0: never")
    max_charging_c: float = Field(default=40.0, gt=0, description="wait while charging at this temperature or above")

    def objection(self, now: Conditions) -> str:
        """Return why not to measure, with a remedy; empty if the device may measure."""
        low = now.battery_percent is not None and now.battery_percent < self.min_percent
        if low and now.battery_state in ("discharging", None):
            return f"battery at {now.battery_percent:.0f} %, below {self.min_percent:g} %: plug the device in"
        heat = now.battery_temperature_c
        if now.battery_state == "charging" and heat is not None and heat >= self.max_charging_c:
            return f"battery charges at {heat:.0f} C, {self.max_charging_c:g} C or more: unplug or cool the device"
        return ""


@dataclass(frozen=True, slots=True)
class BatteryReading:
    """State of the battery; unknown values are None."""

    percent: float | None = None
    state: BatteryState | None = None
    temperature_c: float | None = None


class Battery:
    """The battery of the device whose files lie under `root`."""

    def __init__(
        self, root: Path = Path("/"), run: RunProgram = run_program, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._run, self._clock = run, clock
        self._root = root
        self._own_device = root == Path("/")
        is_hidden = self._own_device and find_battery(root) is None
        self._termux = shutil.which(_TERMUX_PROGRAM) if is_hidden else None
        self._termux_reading, self._termux_at = BatteryReading(), float("-inf")

    def read(self) -> BatteryReading:
        """Read the state of the battery."""
        folder = find_battery(self._root)  # each time: it may be taken out
        if folder is not None:
            heat = number(folder / "temp")
            state = _STATES.get(text(folder / "status").lower())
            return BatteryReading(
                percent=_level(folder),
                state="idle" if state is None and _is_plugged(self._root) else state,
                temperature_c=battery_celsius(heat) if heat is not None else None,
            )
        if self._termux is not None:
            return self._ask_termux(self._termux)
        # If the kernel lists power supplies, psutil only reads the same files, and those of a mouse too.
        kernel_tells = (self._root / _SUPPLIES).is_dir()
        found = psutil_call("sensors_battery") if self._own_device and not kernel_tells else None
        if found is None:
            return BatteryReading()
        plugged: dict[bool | None, BatteryState] = {True: "idle", False: "discharging"}
        return BatteryReading(percent=percent(float(found.percent)), state=plugged.get(found.power_plugged))

    def _ask_termux(self, program: str) -> BatteryReading:
        if self._clock() - self._termux_at >= _TERMUX_EVERY_S:
            self._termux_reading = parse_termux(self._run([program]))
            self._termux_at = self._clock()
            if self._termux_reading.percent is None:
                self._termux = None  # without the app of that name the program only hangs
        return self._termux_reading


def find_battery(root: Path) -> Path | None:
    """Return the folder of the battery that feeds the device, the fullest of several.

    Those of mice and headsets do not feed it, and an empty battery bay shows one at 0 % that is not present.
    """
    found: list[tuple[float, Path]] = []
    for folder in sorted(root.glob(f"{_SUPPLIES}/*")):
        own = text(folder / "type") == "Battery" and text(folder / "scope") != "Device"
        level = _level(folder) if own and text(folder / "present") != "0" else None
        if level is not None:
            found.append((level, folder))
    return max(found, key=lambda item: item[0])[1] if found else None


def _level(folder: Path) -> float | None:
    """Return a battery's charge in per cent, from its driver's files; None if they do not tell it."""
    level = number(folder / "capacity")
    if level is not None:
        return percent(level)
    for kind in ("energy", "charge"):
        now, full = number(folder / f"{kind}_now"), number(folder / f"{kind}_full")
        if now is not None and full is not None and full > 0:
            return percent(100 * now / full)
    return None


def _is_plugged(root: Path) -> bool:
    """Whether another supply than a battery feeds the device."""
    folders = root.glob(f"{_SUPPLIES}/*")
    return any(text(f / "type") not in ("Battery", "") and text(f / "online") == "1" for f in folders)


def parse_termux(output: str) -> BatteryReading:
    """Parse the output of `termux-battery-status`."""
    try:
        fields = json.loads(output)
        if fields.get("present") is False:
            return BatteryReading()
        heat = fields.get("temperature")
        return BatteryReading(
            percent=percent(float(fields["percentage"])),
            state=_STATES.get(str(fields.get("status", "")).lower()),
            temperature_c=plausible_celsius(float(heat)) if heat is not None else None,
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return BatteryReading()
