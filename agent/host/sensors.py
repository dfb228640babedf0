"""Read temperature, clock, governor, throttling, load and battery from the sources that this device has.

Every sensor is optional: what is missing or unreadable is None. Files come first; psutil, where it is installed, only
fills what they leave open.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from fleetnas.agent.host.battery import Battery
from fleetnas.agent.host.device_files import RunProgram, number, psutil_call, run_program, text
from fleetnas.agent.host.power import find_power_meter
from fleetnas.agent.host.units import Thermometer, clock_mhz, plausible_celsius
from fleetnas.device_profiles.quantities import of_readings
from fleetnas.fleet_protocol.messages import Conditions

#: Thermal zones and hwmon chips that are the processor's, best first.
_CPU_ZONES = (
    "tj-thermal",
    "x86_pkg_temp",
    "cpu-thermal",
    "cpu_thermal",
    "CPU-therm",
    "cpu",
    "soc",
    "tsens",
    "coretemp",
    "k10temp",
)
#: `get_throttled` bits that mean "now": under-voltage, frequency capped, throttled, soft temperature limit.
_PI_THROTTLED_NOW = 0xF
_PI_FIRMWARE_FILE = "sys/devices/platform/soc/soc:firmware/get_throttled"


class Sensors:
    """The sensors of the device whose files lie under `root`."""

    def __init__(self, root: Path = Path("/"), run: RunProgram = run_program) -> None:
        self._root = root
        self._run = run
        self._own_device = root == Path("/")
        self._zone = self._find_zone()
        self._thermometer = Thermometer()
        self._cpufreq = sorted(root.glob("sys/devices/system/cpu/cpu[0-9]*/cpufreq"))
        # Processors that got too hot, and a Jetson that drew too much current.
        self._throttle_counts = sorted(
            [
                *root.glob("sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/*_throttle_count"),
                *root.glob("sys/class/hwmon/hwmon*/oc[0-9]_event_cnt"),
            ]
        )
        self._last_counts = self._read_counts()
        self._battery = Battery(root, run)
        #: The board's own power meter, where it has one.
        self.power_meter = find_power_meter(root)
        self._vcgencmd = shutil.which("vcgencmd") if self._own_device else None

    def read(self) -> Conditions:
        """Read the device's state now, without its power, which is only meaningful during a measurement."""
        battery = self._battery.read()
        return of_readings(
            Conditions,
            temperature_c=self._temperature_c(),
            clock_mhz=self._clock_mhz(),
            governor=self._governor(),
            throttled=self._throttled(),
            load_1min=self._load(),
            battery_percent=battery.percent,
            battery_state=battery.state,
            battery_temperature_c=battery.temperature_c,
        )

    def missing(self) -> list[str]:
        """Return the names of the sensors that this device does not have."""
        found = self.read()
        silent = [name for name in Conditions.model_fields if getattr(found, name) is None]
        return [name for name in silent if name != "power_mw" or self.power_meter is None]

    def clock_is_fixed(self) -> bool:
        """Whether every core's lowest clock is its highest, as `jetson_clocks` sets it, whatever the governor."""
        limits = [(text(f / "scaling_min_freq"), text(f / "scaling_max_freq")) for f in self._cpufreq]
        limits = [limit for limit in limits if limit != ("", "")]  # of a core that is offline
        return bool(limits) and all(low == high != "" for low, high in limits)

    def _find_zone(self) -> Path | None:
        candidates = [
            (_rank(text(folder / name)), folder / reading)
            for pattern, name, reading in (
                ("sys/class/thermal/thermal_zone*", "type", "temp"),
                ("sys/class/hwmon/hwmon*", "name", "temp1_input"),
            )
            for folder in sorted(self._root.glob(pattern))
        ]
        readings = [(rank, file, number(file)) for rank, file in candidates]
        # A sensor that is off or broken shows an impossible value; it is used only if there is no other.
        readable = [
            (rank, Thermometer().celsius(value) is None, file) for rank, file, value in readings if value is not None
        ]
        return min(readable, key=lambda item: (item[1], item[0]))[2] if readable else None

    def _temperature_c(self) -> float | None:
        value = number(self._zone) if self._zone else None
        if value is not None:
            return self._thermometer.celsius(value)
        if self._own_device:
            readings = psutil_call("sensors_temperatures") or {}
            for chip in sorted(readings, key=_rank):
                for reading in readings[chip]:
                    return plausible_celsius(float(reading.current))
        return None

    def _clock_mhz(self) -> float | None:
        readings = [value for folder in self._cpufreq if (value := number(folder / "scaling_cur_freq")) is not None]
        clocks = [clock for reading in readings if (clock := clock_mhz(reading)) is not None]
        if clocks:
            return max(clocks)
        reading = psutil_call("cpu_freq") if self._own_device else None
        return float(reading.current) if reading is not None and reading.current else None

    def _governor(self) -> str | None:
        governors = {text(folder / "scaling_governor") for folder in self._cpufreq}
        return "+".join(sorted(governors - {""}))[:32] or None

    def _throttled(self) -> bool | None:
        flags = text(self._root / _PI_FIRMWARE_FILE)
        if not flags and self._vcgencmd:
            flags = self._run([self._vcgencmd, "get_throttled"]).strip().rpartition("=")[2]
        if flags:
            try:
                return bool(int(flags, 16) & _PI_THROTTLED_NOW)
            except ValueError:
                return None
        if self._throttle_counts:
            # Per core: the count of a core that is switched off and on again is not new throttling.
            before, now = self._last_counts, self._read_counts()
            self._last_counts = {**before, **now}
            return any(count > before.get(path, count) for path, count in now.items())
        return None

    def _read_counts(self) -> dict[Path, float]:
        counts = {path: number(path) for path in self._throttle_counts}
        return {path: count for path, count in counts.items() if count is not None}

    def _load(self) -> float | None:
        words = text(self._root / "proc/loadavg").split()
        try:
            return float(words[0])
        except (IndexError, ValueError):
            return None


def _rank(name: str) -> int:
    lowered = name.lower()
    for rank, known in enumerate(_CPU_ZONES):
        if lowered.startswith(known.lower()):
            return rank
    return len(_CPU_ZONES)
