"""Describe a phone and its state from its own files and its battery service."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from fleetnas.agent.host.device import describe_device
from fleetnas.agent.host.units import battery_celsius, percent
from fleetnas.agent.runtimes.adb import Adb
from fleetnas.device_profiles.plain_text import plain
from fleetnas.device_profiles.profile import DeviceProfile
from fleetnas.device_profiles.quantities import of_readings
from fleetnas.fleet_protocol.messages import BatteryState, Conditions

_MARK = "--- fleetnas "
#: The files that describe a phone, as a pattern of its shell, and as the only names that are accepted in its answer:
#: each becomes the name of a file on this host.
_DESCRIBING_FILES = "/proc/cpuinfo /proc/meminfo /sys/devices/system/cpu/cpu*/cpufreq/cpuinfo_max_freq"
_DESCRIBING_FILE = re.compile(
    r"/proc/(?:cpuinfo|meminfo)|/sys/devices/system/cpu/cpu[0-9]{1,3}/cpufreq/cpuinfo_max_freq", re.ASCII
)
#: No such file is larger.
_MAX_FILE_CHARACTERS = 1 << 18
#: Android's `BatteryManager`: charging, discharging, not charging, full.
_BATTERY_STATES: dict[int, BatteryState] = {2: "charging", 3: "discharging", 4: "idle", 5: "idle"}
_BATTERY_FIELD = re.compile(r"^\s*(level|scale|status|temperature): (-?[0-9]{1,6})\s*$", re.MULTILINE)
_NO_BATTERY = re.compile(r"^\s*present: false\s*$", re.MULTILINE)


def describe_phone(adb: Adb) -> DeviceProfile:
    """Return the phone's profile, from the same files that describe a board."""
    text = adb.run("shell", f'for f in {_DESCRIBING_FILES}; do echo "{_MARK}$f"; cat $f || true; done')
    with tempfile.TemporaryDirectory() as folder:
        for name, content in _reported_files(text).items():
            file = Path(folder, *Path(name).parts[1:])
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content)
        return describe_device(
            Path(folder),
            model=adb.property("ro.product.model") or "Android device",
            machine=plain(" ".join(adb.shell("uname", "-m").split())) or "aarch64",
            operating_system=f"Android {adb.property('ro.build.version.release')}",
        )


def read_phone_conditions(adb: Adb) -> Conditions:
    """Return level, state and temperature of the phone's battery; what it does not report is None."""
    text = adb.run("shell", "dumpsys battery || true")
    if _NO_BATTERY.search(text):
        return Conditions()
    found = {name: int(value) for name, value in _BATTERY_FIELD.findall(text)}
    heat_c = battery_celsius(found["temperature"]) if "temperature" in found else None
    return of_readings(
        Conditions,
        temperature_c=heat_c,
        battery_percent=percent(100 * found["level"] / (found.get("scale") or 100)) if "level" in found else None,
        battery_state=_BATTERY_STATES.get(found.get("status", 0)),
        battery_temperature_c=heat_c,
    )


def _reported_files(text: str) -> dict[str, str]:
    """Return the files that the phone printed, by path; other paths and repeated ones are ignored."""
    found: dict[str, str] = {}
    for part in text.split(_MARK)[1:]:
        name, _, content = part.partition("\n")
        if _DESCRIBING_FILE.fullmatch(name.rstrip("\r")):
            found.setdefault(name.rstrip("\r"), content[:_MAX_FILE_CHARACTERS])
    return found
