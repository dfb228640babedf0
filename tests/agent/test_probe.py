"""Profiles and sensors of boards, from the files that these boards have."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from fleetnas.agent.host.device import describe_device, installed_versions
from fleetnas.agent.host.processor import describe_processor
from fleetnas.agent.host.sensors import Sensors
from fleetnas.agent.runtimes.settings import parse_setting
from fleetnas.device_profiles.catalogue import load_arm_cores, load_catalogue
from fleetnas.fleet_protocol.messages import Conditions


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def arm_core(number: int, part: str, features: str = "fp asimd evtstrm crc32 cpuid asimdhp asimddp") -> str:
    return (
        f"processor\t: {number}\nBogoMIPS\t: 108.00\nFeatures\t: {features}\nCPU implementer\t: 0x41\n"
        f"CPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: {part}\nCPU revision\t: 3\n\n"
    )


def raspberry_pi_4(root: Path) -> Path:
    features = "fp asimd evtstrm crc32 cpuid"
    cores = "".join(arm_core(number, "0xd08", features) for number in range(4))
    files = {
        "proc/cpuinfo": f"{cores}Revision\t: c03114\nSerial\t\t: 1\nModel\t\t: Raspberry Pi 4 Model B Rev 1.4\n",
        "proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.4\0",
        "proc/meminfo": "MemTotal:        3884360 kB\nMemFree: 1 kB\n",
        "proc/loadavg": "0.42 0.30 0.10 1/200 999\n",
        "etc/os-release": 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nID=debian\n',
        "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
        "sys/class/thermal/thermal_zone0/temp": "61347\n",
        "sys/devices/platform/soc/soc:firmware/get_throttled": "50005\n",
    }
    for number in range(4):
        cpufreq = f"sys/devices/system/cpu/cpu{number}/cpufreq"
        files[f"{cpufreq}/cpuinfo_max_freq"] = "1800000\n"
        files[f"{cpufreq}/scaling_cur_freq"] = "1500000\n"
        files[f"{cpufreq}/scaling_governor"] = "ondemand\n"
    return write(root, files)


def test_a_raspberry_pi_4_is_recognised(tmp_path: Path) -> None:
    profile = describe_device(raspberry_pi_4(tmp_path))
    assert profile.model == "Raspberry Pi 4 Model B Rev 1.4"
    assert profile.profile == "raspberry_pi_4"
    assert [(c.name, c.cores, c.max_clock_mhz) for c in profile.clusters] == [("Cortex-A72", 4, 1800.0)]
    assert profile.vector_extensions == ("asimd",)
    assert profile.memory_mb == 3793
    assert profile.operating_system.startswith("Debian GNU/Linux 12")


def test_its_sensors_are_read(tmp_path: Path) -> None:
    sensors = Sensors(raspberry_pi_4(tmp_path))
    assert sensors.read() == Conditions(
        temperature_c=61.347, clock_mhz=1500.0, governor="ondemand", throttled=True, load_1min=0.42
    )
    assert sensors.missing() == ["battery_percent", "battery_state", "battery_temperature_c", "power_mw"]


@pytest.mark.parametrize(
    ("flags", "throttled"), [("0", False), ("50000", False), ("4", True), ("8\n", True), ("?", None)]
)
def test_what_was_throttled_earlier_is_not_throttled_now(tmp_path: Path, flags: str, throttled: bool | None) -> None:
    root = raspberry_pi_4(tmp_path)
    write(root, {"sys/devices/platform/soc/soc:firmware/get_throttled": flags})
    assert Sensors(root).read().throttled is throttled


def test_clusters_of_unlike_cores_are_told_apart(tmp_path: Path) -> None:
    parts = ["0xd05"] * 4 + ["0xd41"] * 2 + ["0xd44"] * 2
    clocks = [1803000] * 4 + [2253000] * 2 + [2802000] * 2
    files = {"proc/cpuinfo": "".join(arm_core(number, part) for number, part in enumerate(parts))}
    files |= {
        f"sys/devices/system/cpu/cpu{number}/cpufreq/cpuinfo_max_freq": f"{clock}\n"
        for number, clock in enumerate(clocks)
    }
    processor = describe_processor(write(tmp_path, files))
    assert [(cluster.name, cluster.cores) for cluster in processor.clusters] == [
        ("Cortex-X1", 2),
        ("Cortex-A78", 2),
        ("Cortex-A55", 4),
    ]
    assert processor.vector_extensions == ("asimd", "asimdhp", "asimddp")


def test_an_x86_computer_throttles_when_its_counter_grows(tmp_path: Path) -> None:
    counter = "sys/devices/system/cpu/cpu0/thermal_throttle/package_throttle_count"
    files = {
        counter: "7\n",
        "proc/cpuinfo": "processor\t: 0\nmodel name\t: Intel(R) N100\nflags\t\t: fpu sse4_1 avx avx2 fma avx_vnni\n\n",
        "sys/class/dmi/id/sys_vendor": "Beelink\n",
        "sys/class/dmi/id/product_name": "MINI S12\n",
        "sys/class/hwmon/hwmon0/name": "nvme\n",
        "sys/class/hwmon/hwmon0/temp1_input": "40000\n",
        "sys/class/hwmon/hwmon1/name": "coretemp\n",
        "sys/class/hwmon/hwmon1/temp1_input": "71000\n",
        "sys/class/power_supply/BAT0/type": "Battery\n",
        "sys/class/power_supply/BAT0/capacity": "83\n",
    }
    root = write(tmp_path, files)
    sensors = Sensors(root)
    first = sensors.read()
    assert (first.temperature_c, first.throttled, first.battery_percent) == (71.0, False, 83.0)
    write(root, {counter: "9\n"})
    assert sensors.read().throttled is True
    assert sensors.read().throttled is False
    profile = describe_device(root)
    assert profile.model == "Beelink MINI S12"
    assert profile.vector_extensions == ("sse4_1", "avx", "fma", "avx2", "avx_vnni")


def test_a_device_without_any_of_these_files_is_unknown_and_no_error(tmp_path: Path) -> None:
    assert Sensors(tmp_path).read() == Conditions()
    profile = describe_device(tmp_path)
    assert profile.clusters == ()
    assert profile.memory_mb is None


def test_unreadable_values_are_unknown(tmp_path: Path) -> None:
    root = raspberry_pi_4(tmp_path)
    write(root, {"proc/loadavg": "", "sys/class/thermal/thermal_zone0/temp": "invalid\n"})
    conditions = Sensors(root).read()
    assert (conditions.temperature_c, conditions.load_1min) == (None, None)


def test_psutil_is_not_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "psutil", None)
    Sensors().read()
    assert Sensors(raspberry_pi_4(tmp_path)).read().temperature_c == 61.347


@pytest.mark.parametrize(
    ("model", "machine", "system", "profile"),
    [
        ("Raspberry Pi 3 Model B Plus Rev 1.3", "aarch64", "", "raspberry_pi_3"),
        ("Raspberry Pi 400 Rev 1.0", "aarch64", "", "raspberry_pi_4"),
        ("Raspberry Pi Compute Module 4 Rev 1.0", "aarch64", "", "raspberry_pi_4"),
        ("Raspberry Pi 5 Model B Rev 1.0", "aarch64", "", "raspberry_pi_5"),
        ("Raspberry Pi Zero 2 W Rev 1.0", "aarch64", "", "raspberry_pi_zero_2_w"),
        ("Raspberry Pi 3 Model B Rev 1.2", "armv7l", "", "generic_arm32"),
        ("NVIDIA Jetson Nano Developer Kit", "aarch64", "", "jetson_nano"),
        ("NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super", "aarch64", "", "jetson_orin_nano"),
        ("NVIDIA Jetson AGX Orin Developer Kit", "aarch64", "", "jetson_agx_orin"),
        ("Pixel 6", "aarch64", "Android 14", "google_pixel"),
        ("SM-S911B", "aarch64", "Android 14", "samsung_galaxy"),
        ("2201116SG", "aarch64", "Android 13", "generic_android"),
        ("QEMU virt", "aarch64", "Debian", "generic_arm64"),
        ("MINI S12", "x86_64", "Debian", "generic_x86_64"),
        ("Pixelbook", "x86_64", "Debian", "generic_x86_64"),
        ("StarFive VisionFive 2", "riscv64", "Debian", None),
    ],
)
def test_the_catalogue_finds_the_file_of_a_board(model: str, machine: str, system: str, profile: str | None) -> None:
    match = load_catalogue().match(model=model, machine=machine, operating_system=system)
    assert (match.name if match else None) == profile


def test_every_data_file_offers_settings_that_exist_and_patterns_that_compile() -> None:
    for name, device in load_catalogue().devices.items():
        assert re.fullmatch(r"[a-z0-9_]+", name)
        assert [parse_setting(text) for text in device.runtimes], name
        for pattern in (device.model_pattern, device.machine_pattern, device.operating_system_pattern):
            re.compile(pattern or "")
        assert device.model_pattern or device.machine_pattern, f"{name} would match everything"


def test_a_device_is_added_by_one_data_file(tmp_path: Path) -> None:
    (tmp_path / "my_board.json").write_text(json.dumps({"title": "My board", "model_pattern": "^My Board"}))
    match = load_catalogue(tmp_path).match(model="My Board 2", machine="riscv64")
    assert match is not None
    assert match.name == "my_board"


def test_arm_cores_are_keyed_as_cpuinfo_writes_them() -> None:
    assert all(re.fullmatch(r"0x[0-9a-f]{2}/0x[0-9a-f]{3}", key) for key in load_arm_cores())


def test_versions_are_read_without_importing_anything() -> None:
    assert {"python", "fleetnas", "numpy", "onnxruntime"} <= set(installed_versions())
