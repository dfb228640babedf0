"""Files of devices that are not at hand, as their kernels write them."""

from __future__ import annotations

from pathlib import Path

BATTERY = "sys/class/power_supply/battery"


def write_files(root: Path, files: dict[str, str]) -> Path:
    """Write these files below `root`, which is returned."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def battery_files(
    percent: int, status: str, temperature_c: float = 25.0, *, current_ua: int | None = None
) -> dict[str, str]:
    """A phone's battery, as Linux' power_supply class shows it."""
    files = {
        f"{BATTERY}/type": "Battery\n",
        f"{BATTERY}/capacity": f"{percent}\n",
        f"{BATTERY}/status": f"{status}\n",
        f"{BATTERY}/temp": f"{10 * temperature_c:.0f}\n",
        f"{BATTERY}/voltage_now": "3800000\n",
    }
    if current_ua is not None:
        files[f"{BATTERY}/current_now"] = f"{current_ua}\n"
    return files


def ina3221_files(device: str, hwmon: str, rails: dict[int, tuple[str, int, int]]) -> dict[str, str]:
    """A Jetson's power monitor: label, mV and mA of each channel, and the sum of the shunts' voltages beside them."""
    folder = f"sys/bus/i2c/drivers/ina3221/{device}/hwmon/{hwmon}"
    files = {f"{folder}/name": "ina3221\n", f"{folder}/in7_label": "sum of shunt voltages\n"}
    for channel, (label, millivolts, milliamperes) in rails.items():
        files |= {
            f"{folder}/in{channel}_label": f"{label}\n",
            f"{folder}/in{channel}_input": f"{millivolts}\n",
            f"{folder}/curr{channel}_input": f"{milliamperes}\n",
        }
    return files


def jetson_orin_nano_files() -> dict[str, str]:
    """An Orin Nano under JetPack 6 (Linux for Tegra 36.4)."""
    core = (
        "processor\t: {}\nmodel name\t: ARMv8 Processor rev 1 (v8l)\nBogoMIPS\t: 62.50\n"
        "Features\t: fp asimd evtstrm aes sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp\n"
        "CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: 0xd42\nCPU revision\t: 1\n\n"
    )
    files = {
        "proc/device-tree/model": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0",
        "proc/cpuinfo": "".join(core.format(number) for number in range(6)),
        "proc/meminfo": "MemTotal:        7802328 kB\n",
        "etc/nv_tegra_release": (
            "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 01:49:37 "
            "UTC 2025\n# KERNEL_VARIANT: oot\nTARGET_USERSPACE_LIB_DIR=nvidia\n"
        ),
        "etc/os-release": 'PRETTY_NAME="Ubuntu 22.04.5 LTS"\n',
        "sys/class/hwmon/hwmon0/oc1_event_cnt": "0\n",
        "sys/class/hwmon/hwmon0/oc3_event_cnt": "4\n",
    }
    zones = {"cpu-thermal": 48406, "gpu-thermal": 47531, "soc0-thermal": 46875, "tj-thermal": 48625}
    for number, (name, millidegrees) in enumerate(zones.items()):
        files[f"sys/class/thermal/thermal_zone{number}/type"] = f"{name}\n"
        files[f"sys/class/thermal/thermal_zone{number}/temp"] = f"{millidegrees}\n"
    for number in range(6):
        cpufreq = f"sys/devices/system/cpu/cpu{number}/cpufreq"
        files |= {
            f"{cpufreq}/cpuinfo_max_freq": "1728000\n",
            f"{cpufreq}/scaling_min_freq": "729600\n",
            f"{cpufreq}/scaling_max_freq": "1510400\n",
            f"{cpufreq}/scaling_cur_freq": "1344000\n",
            f"{cpufreq}/scaling_governor": "schedutil\n",
        }
    rails = {1: ("VDD_IN", 5040, 1200), 2: ("VDD_CPU_GPU_CV", 5032, 300), 3: ("VDD_SOC", 5032, 280)}
    return files | ina3221_files("1-0040", "hwmon1", rails)


def power_mode_files(modes: dict[int, str]) -> dict[str, str]:
    """A Jetson's table of power modes, as `nvpmodel` reads it."""
    comment = "# < POWER_MODEL ID=id_num NAME=mode_name >\n# < POWER_MODEL ID=9 NAME=MAXN_OLD >\n"
    table = "".join(
        f"< POWER_MODEL ID={number} NAME={name} >\nCPU_ONLINE CORE_0 1\n\n" for number, name in modes.items()
    )
    return {"etc/nvpmodel.conf": f"{comment}{table}< PM_CONFIG DEFAULT=1 >\n"}


def control_group_files(version: int, own: str, shown: str = "/") -> dict[str, str]:
    """Where a process finds its control groups: its path in the hierarchy, and which part of that is mounted."""
    if version == 2:
        return {
            "proc/self/cgroup": f"0::{own}\n",
            "proc/self/mountinfo": f"30 23 0:26 {shown} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup rw,nsdelegate\n",
        }
    mounts = (("cpu,cpuacct", "cpu,cpuacct"), ("memory", "memory"), ("systemd", "name=systemd"))
    lines = [
        f"{30 + n} 29 0:{30 + n} {shown} /sys/fs/cgroup/{folder} ro - cgroup cgroup rw,{controllers}\n"
        for n, (folder, controllers) in enumerate(mounts)
    ]
    groups = [f"{9 - n}:{controllers}:{own}\n" for n, (_, controllers) in enumerate(mounts)]
    return {"proc/self/cgroup": "".join(groups), "proc/self/mountinfo": "".join(lines)}


def agx_orin_rails() -> dict[str, str]:
    """The two power monitors of an AGX Orin, which has no rail that feeds everything."""
    first = {1: ("VDD_GPU_SOC", 12000, 400), 2: ("VDD_CPU_CV", 12000, 100), 3: ("VIN_SYS_5V0", 5000, 800)}
    second = {1: ("NC", 0, 0), 2: ("VDDQ_VDD2_1V8AO", 5000, 90), 3: ("NC", 0, 0)}
    return ina3221_files("1-0040", "hwmon3", first) | ina3221_files("1-0041", "hwmon4", second)
