"""Read the board's own power meters, and compute the energy of an inference.

Meters, best first: the INA3221 of a Jetson (a gauge of the board's rails), RAPL of x86 processors (a counter of the
packages' energy; root's to read on most systems), a battery's fuel gauge while it discharges (the whole device, which
the gauge averages over seconds).
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fleetnas.agent.host.battery import find_battery
from fleetnas.agent.host.device_files import number, text
from fleetnas.agent.host.units import microamperes, microvolts
from fleetnas.device_profiles.quantities import Millijoules, is_plausible, of_readings
from fleetnas.fleet_protocol.messages import Conditions

#: How long a device rests before its idle power is read, and how long that reading holds.
IDLE_REST_S = 0.25
IDLE_HOLDS_S = 60.0
_INA3221_CHANNELS = (1, 2, 3)
#: The rail that feeds everything, where there is one.
_TOTAL_RAIL = "VDD_IN"
#: Not connected, and a rail of AGX Orin that its 5 V rail feeds: it must not count twice.
_UNCOUNTED_RAILS = frozenset({"", "NC", "VDDQ_VDD2_1V8AO"})


@dataclass(frozen=True, slots=True)
class Mark:
    """A meter's reading: mW of a gauge, mJ of a counter."""

    at_s: float
    value: float


class PowerMeter(ABC):
    """A meter of this device."""

    #: What it measures, such as `ina3221 VDD_IN`.
    source: str

    @abstractmethod
    def mark(self, now_s: float) -> Mark | None:
        """Return a reading at `now_s`, in seconds; None if there is none."""

    @abstractmethod
    def mean_mw(self, begin: Mark, end: Mark) -> float | None:
        """Return the mean power between two marks of this meter, in mW; None if it is unknown."""


class Gauge(PowerMeter):
    """A meter of the power of the last moments; read right after steady work, it is the power of that work."""

    def mark(self, now_s: float) -> Mark | None:
        """Return the power now as a mark; None if it is unknown or not positive."""
        power_mw = self.power_mw()
        return Mark(now_s, power_mw) if power_mw is not None and power_mw > 0 else None

    def mean_mw(self, begin: Mark, end: Mark) -> float | None:
        """Return the power at the end."""
        return end.value

    @abstractmethod
    def power_mw(self) -> float | None:
        """Return the power now, in mW; None if it is unknown."""


class Ina3221(Gauge):
    """Rails of INA3221 chips: in1 to in3 in mV, curr1 to curr3 in mA. Source: kernel documentation, hwmon/ina3221."""

    def __init__(self, rails: dict[str, tuple[Path, int]]) -> None:
        chosen = [_TOTAL_RAIL] if _TOTAL_RAIL in rails else sorted(rails)
        self._rails = [rails[name] for name in chosen]
        self.source = f"ina3221 {'+'.join(chosen)}"[:64]

    def power_mw(self) -> float | None:
        """Return the sum of the rails' powers, in mW; None if one cannot be read."""
        total = 0.0
        for folder, channel in self._rails:
            millivolts, milliamperes = number(folder / f"in{channel}_input"), number(folder / f"curr{channel}_input")
            if millivolts is None or milliamperes is None:
                return None
            total += millivolts * milliamperes / 1000
        return total

    @classmethod
    def find(cls, root: Path) -> Ina3221 | None:
        """Find the rails under `root`, counted once each; None if there are none."""
        folders = {folder.resolve() for folder in root.glob("sys/bus/i2c/drivers/ina3221/*/hwmon/hwmon*")}
        labelled = {
            text(folder / f"in{channel}_label"): (folder, channel)
            for folder in sorted(folders)
            for channel in _INA3221_CHANNELS
        }
        rails = {name: place for name, place in labelled.items() if name not in _UNCOUNTED_RAILS}
        return cls(rails) if rails else None


class FuelGauge(Gauge):
    """A battery that discharges; uW, or uA times uV. Source: kernel documentation, sysfs-class-power."""

    source = "battery"

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def power_mw(self) -> float | None:
        """Return the power of a discharging battery, in mW; None while it does not discharge."""
        if text(self._folder / "status") != "Discharging":
            return None
        power_uw = number(self._folder / "power_now")
        if power_uw is not None:
            return abs(power_uw) / 1e3
        current, voltage = number(self._folder / "current_now"), number(self._folder / "voltage_now")
        if current is None or voltage is None:
            return None
        return abs(microamperes(current)) * microvolts(voltage) / 1e9

    @classmethod
    def find(cls, root: Path) -> FuelGauge | None:
        """Find the device's own battery; None if it does not tell power."""
        folder = find_battery(root)
        if folder is None or (number(folder / "power_now") is None and number(folder / "current_now") is None):
            return None
        return cls(folder)


class Rapl(PowerMeter):
    """Energy counters of x86 packages, uJ, which wrap. Source: kernel documentation, power/powercap."""

    def __init__(self, packages: list[Path]) -> None:
        self._packages = packages
        self._ranges_mj = [(number(package / "max_energy_range_uj") or 0.0) / 1e3 for package in packages]
        self._last_mj: list[float] = []
        self._wrapped_mj = 0.0
        self.source = f"rapl {len(packages)} package{'' if len(packages) == 1 else 's'}"

    def mark(self, now_s: float) -> Mark | None:
        """Return the energy of all packages so far; None if one cannot be read."""
        readings = [number(package / "energy_uj") for package in self._packages]
        now_mj = [reading / 1e3 for reading in readings if reading is not None]
        if len(now_mj) != len(readings):
            return None
        for before, after, span in zip(self._last_mj, now_mj, self._ranges_mj, strict=False):
            self._wrapped_mj += span if after < before else 0.0
        self._last_mj = now_mj
        return Mark(now_s, sum(now_mj) + self._wrapped_mj)

    def mean_mw(self, begin: Mark, end: Mark) -> float | None:
        """Return the energy between the marks over their time, in mW; None if either did not grow."""
        if end.at_s <= begin.at_s or end.value <= begin.value:
            return None
        return (end.value - begin.value) / (end.at_s - begin.at_s)

    @classmethod
    def find(cls, root: Path) -> Rapl | None:
        """Find the packages, without their parts; None if their counters cannot be read."""
        folders = [
            folder for folder in sorted(root.glob("sys/class/powercap/intel-rapl:*")) if folder.name.count(":") == 1
        ]
        packages = [folder for folder in folders if text(folder / "name").startswith("package")]
        readable = packages and all(number(package / "energy_uj") is not None for package in packages)
        return cls(packages) if readable else None


def with_power(conditions: Conditions, power_mw: float | None) -> Conditions:
    """Return `conditions` with a meter's power, in mW; an impossible reading is left out."""
    return of_readings(Conditions, **{**dict(conditions), "power_mw": power_mw})


def energy_mj(mean_mw: float | None, latency_ms: float) -> float | None:
    """Return the energy of an inference, in mJ; None without a plausible power."""
    energy = None if mean_mw is None else mean_mw * latency_ms / 1000
    return energy if is_plausible(Millijoules, energy) else None


def find_power_meter(root: Path = Path("/")) -> PowerMeter | None:
    """Find the best meter of the device whose files lie under `root`; None if it has none."""
    return Ina3221.find(root) or Rapl.find(root) or FuelGauge.find(root)


class IdlePower:
    """Power of the device at rest; read seldom, because a reading takes a moment of rest."""

    def __init__(
        self,
        meter: PowerMeter | None,
        clock: Callable[[], float] = time.monotonic,
        rest: Callable[[float], None] = time.sleep,
    ) -> None:
        self._meter, self._clock, self._rest = meter, clock, rest
        self._known: tuple[float, float | None] | None = None

    def mw(self) -> float | None:
        """Return the mean power of a rest at most `IDLE_HOLDS_S` s ago, in mW; None without a meter."""
        if self._meter is None:
            return None
        if self._known is None or self._clock() - self._known[0] >= IDLE_HOLDS_S:
            begin = self._meter.mark(self._clock())
            self._rest(IDLE_REST_S)
            end = self._meter.mark(self._clock())
            mean = self._meter.mean_mw(begin, end) if begin is not None and end is not None else None
            self._known = self._clock(), mean
        return self._known[1]


class BlockPower:
    """Mean power over the blocks of a measurement. The meter is read between blocks, never inside one."""

    def __init__(self, meter: PowerMeter | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._meter, self._clock = meter, clock
        self._begin: Mark | None = None
        self._energy_mj = self._time_s = 0.0

    def end_block(self, fraction: float) -> None:
        """End a block; at `fraction` 0 none has begun yet."""
        begin, self._begin = self._begin, None
        if self._meter is None or begin is None or fraction <= 0:
            return
        end = self._meter.mark(self._clock())
        mean_mw = self._meter.mean_mw(begin, end) if end is not None else None
        if end is not None and mean_mw is not None:
            self._energy_mj += mean_mw * (end.at_s - begin.at_s)
            self._time_s += end.at_s - begin.at_s

    def begin_block(self) -> None:
        """Begin a block."""
        if self._meter is not None:
            self._begin = self._meter.mark(self._clock())

    @property
    def mean_mw(self) -> float | None:
        """Mean power inside blocks, in mW; None if the meter gave no reading."""
        return self._energy_mj / self._time_s if self._time_s > 0 else None
