"""Check the device: its profile, sensors, memory, processor and clock."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator
from importlib import util

from fleetnas.agent.cli.doctor.finding import DoctorContext, Finding, Status
from fleetnas.agent.host.device import describe_device
from fleetnas.agent.host.jetson import PowerMode, highest_power_mode, power_mode, tegra_release
from fleetnas.agent.host.limits import core_list, free_memory_bytes, read_limits
from fleetnas.agent.host.sensors import Sensors
from fleetnas.fleet_protocol.installing import pip_command

_MIN_FREE_MEMORY_MB = 256
#: A clock before this time was never set: 2024-01-01.
_PLAUSIBLE_UNIX_S = 1_704_067_200


def check_device(_: DoctorContext) -> Iterator[Finding]:
    """Look the device up in the known profiles."""
    profile = describe_device()
    text = f"{profile.model}, {profile.cores} cores"
    if profile.profile == "unknown":
        yield Finding("device", "warning", f"{text}: no known profile", "see docs/adding-a-device.md")
    else:
        yield Finding("device", "ok", f"{text}, profile {profile.profile}")


def check_sensors(context: DoctorContext) -> Iterator[Finding]:
    """Read temperature, governor, throttling, power mode, power meter and battery."""
    sensors = Sensors()
    now = sensors.read()
    if now.temperature_c is None:
        text = "no temperature sensor: heat shows only in the reference subnets' latency"
        yield Finding("temperature", "warning", text, _sensor_fix(platform.machine()))
    else:
        yield Finding("temperature", "ok", f"{now.temperature_c:.0f} C")
    if now.governor is None:
        yield Finding("governor", "ok", "not adjustable here")
    elif now.governor == "performance" or sensors.clock_is_fixed():
        yield Finding("governor", "ok", now.governor + (", clock fixed" if sensors.clock_is_fixed() else ""))
    elif tegra_release() is not None:
        yield Finding("governor", "warning", f"{now.governor}: the clock changes while measuring", "sudo jetson_clocks")
    else:
        fix = "echo performance | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"
        yield Finding("governor", "warning", f"{now.governor}: the clock changes while measuring", fix)
    if now.throttled:
        fix = "cool the board, and give it the power supply its maker asks for"
        yield Finding("throttling", "warning", "the board reports that it is throttled now", fix)
    else:
        yield Finding("throttling", "ok", "not reported here" if now.throttled is None else "none")
    if tegra_release() is not None:
        yield power_mode_finding(power_mode(), highest_power_mode())
    meter = sensors.power_meter
    yield Finding("power meter", "ok", meter.source if meter is not None else "none here: no energy is reported")
    objection = context.battery.objection(now)
    if objection:
        yield Finding("battery", "warning", f"the agent would wait: {objection}", objection.rpartition(": ")[2])
    elif now.battery_percent is not None:
        yield Finding("battery", "ok", f"{now.battery_percent:.0f} %, {now.battery_state or 'state unknown'}")


def _sensor_fix(machine: str) -> str:
    """Return what may make a temperature sensor appear on a machine that shows none."""
    if util.find_spec("psutil") is None:
        return pip_command() + "install psutil"
    if machine in ("x86_64", "i686", "AMD64"):
        return "sudo modprobe coretemp, with an AMD processor sudo modprobe k10temp; virtual machines have none"
    return "ls /sys/class/thermal: if it is empty, load the board's thermal driver; Android and containers hide it"


def power_mode_finding(mode: str | None, highest: PowerMode | None) -> Finding:
    """Judge a Jetson's power mode: in every mode but the highest, cores are off and clocks are capped."""
    if mode is None:
        return Finding("power mode", "warning", "nvpmodel does not tell it", "sudo nvpmodel -q")
    if highest is None:
        if mode.startswith("MAXN"):
            return Finding("power mode", "ok", mode)
        text = f"{mode}; the board does not tell which modes it has"
        return Finding("power mode", "warning", text, "sudo nvpmodel -p --verbose; then sudo nvpmodel -m ID")
    if mode == highest.name:
        return Finding("power mode", "ok", f"{mode}, the highest of this board")
    text = f"{mode}: cores and clocks are capped; the highest of this board is {highest.name}"
    return Finding("power mode", "warning", text, f"sudo nvpmodel -m {highest.number}")


def check_memory(_: DoctorContext) -> Iterator[Finding]:
    """Check that enough memory is free."""
    free, limit = free_memory_bytes(), read_limits().memory_bytes
    if free is None:
        yield Finding("memory", "warning", "the system does not tell how much is free", "cat /proc/meminfo")
        return
    within = f" of the {limit / 1024**2:,.0f} MB that this container or service may have" if limit is not None else ""
    if free < _MIN_FREE_MEMORY_MB * 1024**2:
        text = f"{free / 1024**2:,.0f} MB free{within}, {_MIN_FREE_MEMORY_MB} MB are needed"
        fix = "raise its limit (--memory, MemoryMax=)" if limit is not None else "stop other programs, or add swap"
        yield Finding("memory", "warning", text, fix)
    else:
        yield Finding("memory", "ok", f"{free / 1024**2:,.0f} MB free{within}")


def check_processor(_: DoctorContext) -> Iterator[Finding]:
    """Check that this process may use every core all the time."""
    limits = read_limits()
    text = f"cores {core_list(limits.cores)} may be used" if limits.cores else "the system does not tell which cores"
    if limits.quota_cores is None:
        yield Finding("processor", "ok", text)
        return
    status: Status = "warning" if limits.quota_cores < max(1, len(limits.cores)) else "ok"
    fix = "raise the CPU quota of this container or service (--cpus, CPUQuota=)" if status == "warning" else ""
    yield Finding("processor", status, f"{text}, with the time of {limits.quota_cores:g} cores", fix)


def check_clock(_: DoctorContext) -> Iterator[Finding]:
    """Check that the clock was ever set."""
    if time.time() < _PLAUSIBLE_UNIX_S:
        text = f"says {time.strftime('%Y-%m-%d')}: times of measurements will be wrong, TLS certificates may be refused"
        yield Finding("clock", "warning", text, "sudo timedatectl set-ntp true")
    else:
        yield Finding("clock", "ok", time.strftime("%Y-%m-%d %H:%M:%S %Z"))
