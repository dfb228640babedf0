"""Temperature, clock, governor, throttling, load and battery, from wherever this device tells them.

Every sensor is optional: what is missing or unreadable is None. Files come first; psutil, where it is installed, only
fills what they leave open.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fleet_protocol.messages import Conditions

#: Thermal zones and hwmon chips that are the processor's, best first.
_CPU_ZONES = ("x86_pkg_temp", "cpu-thermal", "cpu_thermal", "CPU-therm", "cpu", "soc", "tsens", "coretemp", "k10temp")
#: `get_throttled` bits that mean "now": under-voltage, frequency capped, throttled, soft temperature limit.
_PI_THROTTLED_NOW = 0xF
_PI_FIRMWARE_FILE = "sys/devices/platform/soc/soc:firmware/get_throttled"
_VCGENCMD_TIMEOUT_S = 2.0

RunProgram = Callable[[list[str]], str]


class Sensors:
    """The sensors of the device whose files lie under `root`."""

    def __init__(self, root: Path = Path("/"), run_program: RunProgram | None = None) -> None:
        self._root = root
        self._run = run_program or _run_program
        self._own_device = root == Path("/")
        self._zone = self._find_zone()
        self._cpufreq = sorted(root.glob("sys/devices/system/cpu/cpu[0-9]*/cpufreq"))
        self._throttle_counts = sorted(root.glob("sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/*_throttle_count"))
        self._last_throttle_count = self._throttle_count()
        self._battery = self._find_battery()
        self._vcgencmd = shutil.which("vcgencmd") if self._own_device else None

    def read(self) -> Conditions:
        """The device's state now."""
        return Conditions(
            temperature_c=self._temperature_c(),
            clock_mhz=self._clock_mhz(),
            governor=self._governor(),
            throttled=self._throttled(),
            load_1min=self._load(),
            battery_percent=self._battery_percent(),
        )

    def missing(self) -> list[str]:
        """Names of the sensors that this device does not have."""
        found = self.read()
        return [name for name in Conditions.model_fields if getattr(found, name) is None]

    def _find_zone(self) -> Path | None:
        candidates = [
            (_rank(_text(folder / name)), folder / reading)
            for pattern, name, reading in (
                ("sys/class/thermal/thermal_zone*", "type", "temp"),
                ("sys/class/hwmon/hwmon*", "name", "temp1_input"),
            )
            for folder in sorted(self._root.glob(pattern))
        ]
        readable = [item for item in candidates if _number(item[1]) is not None]
        return min(readable, key=lambda item: item[0])[1] if readable else None

    def _temperature_c(self) -> float | None:
        value = _number(self._zone) if self._zone else None
        if value is not None:
            return value / 1000
        if self._own_device:
            readings = _psutil_call("sensors_temperatures") or {}
            for chip in sorted(readings, key=_rank):
                for reading in readings[chip]:
                    return float(reading.current)
        return None

    def _clock_mhz(self) -> float | None:
        clocks = [value for folder in self._cpufreq if (value := _number(folder / "scaling_cur_freq")) is not None]
        if clocks:
            return max(clocks) / 1000
        reading = _psutil_call("cpu_freq") if self._own_device else None
        return float(reading.current) if reading is not None and reading.current else None

    def _governor(self) -> str | None:
        governors = {text[:32] for folder in self._cpufreq if (text := _text(folder / "scaling_governor"))}
        return "+".join(sorted(governors))[:32] or None

    def _throttled(self) -> bool | None:
        flags = _text(self._root / _PI_FIRMWARE_FILE)
        if not flags and self._vcgencmd:
            flags = self._run([self._vcgencmd, "get_throttled"]).strip().rpartition("=")[2]
        if flags:
            try:
                return bool(int(flags, 16) & _PI_THROTTLED_NOW)
            except ValueError:
                return None
        if self._throttle_counts:
            count, self._last_throttle_count = self._last_throttle_count, self._throttle_count()
            return self._last_throttle_count > count
        return None

    def _throttle_count(self) -> float:
        return sum(_number(path) or 0 for path in self._throttle_counts)

    def _load(self) -> float | None:
        words = _text(self._root / "proc/loadavg").split()
        try:
            return float(words[0])
        except (IndexError, ValueError):
            return None

    def _find_battery(self) -> Path | None:
        for folder in sorted(self._root.glob("sys/class/power_supply/*")):
            if _text(folder / "type") == "Battery" and _number(folder / "capacity") is not None:
                return folder
        return None

    def _battery_percent(self) -> float | None:
        if self._battery is not None:
            return _number(self._battery / "capacity")
        reading = _psutil_call("sensors_battery") if self._own_device else None
        return float(reading.percent) if reading is not None else None


def _rank(name: str) -> int:
    lowered = name.lower()
    for rank, known in enumerate(_CPU_ZONES):
        if lowered.startswith(known.lower()):
            return rank
    return len(_CPU_ZONES)


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode(errors="replace").strip("\0 \n")
    except OSError:
        return ""


def _number(path: Path) -> float | None:
    try:
        return float(_text(path))
    except ValueError:
        return None


def _run_program(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_VCGENCMD_TIMEOUT_S, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _psutil_call(name: str) -> Any:
    try:
        import psutil

        return getattr(psutil, name)()
    except Exception:  # psutil raises whatever the platform does; a sensor is never an error
        return None


def cpu_count() -> int:
    """Cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except (AttributeError, OSError):
        return os.cpu_count() or 1
