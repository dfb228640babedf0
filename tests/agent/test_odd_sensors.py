"""Drivers that use other units than the kernel's documentation, cores that are switched off, bays without a battery."""

from __future__ import annotations

from pathlib import Path

import pytest
from rigs.device_trees import BATTERY, battery_files, write_files

from fleetnas.agent.host.battery import Battery, BatteryReading, BatteryRule, parse_termux
from fleetnas.agent.host.power import find_power_meter
from fleetnas.agent.host.processor import describe_processor
from fleetnas.agent.host.sensors import Sensors
from fleetnas.agent.host.units import Thermometer
from fleetnas.agent.runtimes.adb_runtime import AdbRuntime

ZONE = "sys/class/thermal/thermal_zone0"
CPU = "sys/devices/system/cpu"


def zone(reading: object, kind: str = "cpu-thermal", number: int = 0) -> dict[str, str]:
    folder = f"sys/class/thermal/thermal_zone{number}"
    return {f"{folder}/type": f"{kind}\n", f"{folder}/temp": f"{reading}\n"}


# -- temperature -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reading", "celsius"),
    [
        ("65", 65.0),  # whole degrees
        ("65000", 65.0),  # as documented
        ("650", 65.0),  # tenths
        ("105", 105.0),
        ("105000", 105.0),
        ("-5", -5.0),
        ("-5000", -5.0),
        ("0", 0.0),
        ("-274000", None),  # a sensor that is off
        ("2147483647", None),
        ("nan", None),
        ("1e999", None),
        ("", None),
    ],
)
def test_a_zone_tells_degrees_in_whatever_unit(tmp_path: Path, reading: str, celsius: float | None) -> None:
    assert Sensors(write_files(tmp_path, zone(reading))).read().temperature_c == celsius


def test_the_unit_of_a_zone_does_not_change_with_the_weather(tmp_path: Path) -> None:
    root = write_files(tmp_path, zone(48000))
    sensors = Sensors(root)
    assert sensors.read().temperature_c == 48.0
    write_files(tmp_path, zone(900))
    assert sensors.read().temperature_c == 0.9
    thermometer = Thermometer()
    assert [thermometer.celsius(reading) for reading in (40, 65, 71)] == [40, 65, 71]


def test_a_chip_beside_the_zones_is_read_the_same_way(tmp_path: Path) -> None:
    chip = {"sys/class/hwmon/hwmon0/name": "coretemp\n", "sys/class/hwmon/hwmon0/temp1_input": "71\n"}
    assert Sensors(write_files(tmp_path, chip)).read().temperature_c == 71.0


def test_a_zone_that_is_off_gives_way_to_one_that_works(tmp_path: Path) -> None:
    files = zone(-274000) | zone(51000, "gpu-thermal", 1)
    assert Sensors(write_files(tmp_path, files)).read().temperature_c == 51.0


# -- clocks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reading", "mhz"),
    [("1800000", 1800.0), ("1800", 1800.0), ("1800000000", 1800.0), ("0", None), ("<unknown>", None)],
)
def test_a_clock_is_in_mhz_whatever_the_driver_says(tmp_path: Path, reading: str, mhz: float | None) -> None:
    files = {f"{CPU}/cpu0/cpufreq/{name}": f"{reading}\n" for name in ("scaling_cur_freq", "cpuinfo_max_freq")}
    root = write_files(tmp_path, files | {"proc/cpuinfo": "processor\t: 0\nmodel name\t: X\n\n"})
    assert Sensors(root).read().clock_mhz == mhz
    assert [cluster.max_clock_mhz for cluster in describe_processor(root).clusters] == [mhz]


def eight_cores(online: list[int]) -> dict[str, str]:
    """Four small and four large cores, as the kernel shows them while some are switched off."""
    core = "processor\t: {}\nFeatures\t: asimd\nCPU implementer\t: 0x41\nCPU part\t: {}\n\n"
    files = {"proc/cpuinfo": "".join(core.format(n, "0xd05" if n < 4 else "0xd41") for n in online)}
    for n in online:
        files |= {
            f"{CPU}/cpu{n}/cpufreq/cpuinfo_max_freq": f"{1800000 if n < 4 else 2400000}\n",
            f"{CPU}/cpu{n}/cpufreq/scaling_min_freq": "1800000\n",
            f"{CPU}/cpu{n}/cpufreq/scaling_max_freq": "1800000\n",
        }
    return files


@pytest.mark.parametrize(
    ("online", "clusters"),
    [
        ([0, 1, 2, 3, 4, 5, 6, 7], [("Cortex-A78", 4, 2400.0), ("Cortex-A55", 4, 1800.0)]),
        ([0, 4, 5, 6, 7], [("Cortex-A78", 4, 2400.0), ("Cortex-A55", 1, 1800.0)]),
        ([0, 2, 5, 7], [("Cortex-A78", 2, 2400.0), ("Cortex-A55", 2, 1800.0)]),
    ],
)
def test_a_core_that_is_off_moves_no_clock(
    tmp_path: Path, online: list[int], clusters: list[tuple[str, int, float]]
) -> None:
    found = describe_processor(write_files(tmp_path, eight_cores(online))).clusters
    assert [(cluster.name, cluster.cores, cluster.max_clock_mhz) for cluster in found] == clusters


def test_a_core_that_is_off_does_not_unfix_the_clock(tmp_path: Path) -> None:
    root = write_files(tmp_path, eight_cores([0, 1, 4]))
    (root / CPU / "cpu5/cpufreq").mkdir(parents=True)  # its files cannot be read
    assert Sensors(root).clock_is_fixed()


def test_a_core_that_comes_back_was_not_throttled_meanwhile(tmp_path: Path) -> None:
    counts = [f"{CPU}/cpu{n}/thermal_throttle/core_throttle_count" for n in (0, 1)]
    root = write_files(tmp_path, {counts[0]: "3\n", counts[1]: "7\n"})
    sensors = Sensors(root)
    (root / counts[1]).unlink()
    assert sensors.read().throttled is False
    write_files(root, {counts[1]: "7\n"})
    assert sensors.read().throttled is False
    write_files(root, {counts[1]: "8\n"})
    assert sensors.read().throttled is True


# -- batteries -------------------------------------------------------------------------------------------------------


def test_a_bay_without_a_battery_keeps_nobody_waiting(tmp_path: Path) -> None:
    root = write_files(tmp_path, battery_files(0, "Unknown") | {f"{BATTERY}/present": "0\n"})
    assert Battery(root).read() == BatteryReading()
    assert BatteryRule().objection(Sensors(root).read()) == ""
    assert find_power_meter(root) is None


def test_a_battery_that_is_taken_out_while_the_agent_runs_keeps_nobody_waiting(tmp_path: Path) -> None:
    root = write_files(tmp_path, battery_files(9, "Discharging") | {f"{BATTERY}/present": "1\n"})
    sensors = Sensors(root)
    assert "9 %" in BatteryRule().objection(sensors.read())
    write_files(root, {f"{BATTERY}/present": "0\n", f"{BATTERY}/capacity": "0\n"})
    assert BatteryRule().objection(sensors.read()) == ""


def test_of_several_batteries_the_fullest_counts(tmp_path: Path) -> None:
    root = write_files(tmp_path, battery_files(4, "Unknown"))
    second = {"type": "Battery\n", "capacity": "88\n", "status": "Discharging\n", "present": "1\n"}
    write_files(root, {f"sys/class/power_supply/BAT1/{name}": text for name, text in second.items()})
    assert Battery(root).read().percent == 88


def test_a_battery_of_unknown_state_beside_a_plug_does_not_discharge(tmp_path: Path) -> None:
    root = write_files(tmp_path, battery_files(0, "Unknown"))
    assert BatteryRule().objection(Sensors(root).read()) != ""
    write_files(root, {"sys/class/power_supply/AC/type": "Mains\n", "sys/class/power_supply/AC/online": "1\n"})
    assert Battery(root).read().state == "idle"
    assert BatteryRule().objection(Sensors(root).read()) == ""


def test_a_driver_without_a_level_tells_it_as_energy(tmp_path: Path) -> None:
    files = {"type": "Battery\n", "status": "Discharging\n", "energy_now": "12000000\n", "energy_full": "48000000\n"}
    root = write_files(tmp_path, {f"{BATTERY}/{name}": text for name, text in files.items()})
    assert Battery(root).read().percent == 25.0


@pytest.mark.parametrize(
    ("reading", "celsius"), [("310", 31.0), ("31000", 31.0), ("-100", -10.0), ("9999000", None), ("nan", None)]
)
def test_a_battery_tells_tenths_of_a_degree_or_thousandths(tmp_path: Path, reading: str, celsius: float | None) -> None:
    root = write_files(tmp_path, battery_files(80, "Charging") | {f"{BATTERY}/temp": f"{reading}\n"})
    assert Battery(root).read().temperature_c == celsius


@pytest.mark.parametrize("level", ["-1", "101", "nan", "255"])
def test_a_level_that_is_none_is_unknown(tmp_path: Path, level: str) -> None:
    root = write_files(tmp_path, battery_files(50, "Discharging") | {f"{BATTERY}/capacity": f"{level}\n"})
    assert Battery(root).read().percent is None


@pytest.mark.parametrize(("current", "voltage"), [("-500000", "3800000"), ("-500", "3800"), ("-500", "3800000")])
def test_power_is_the_same_in_whatever_unit_a_phone_tells_it(tmp_path: Path, current: str, voltage: str) -> None:
    files = battery_files(80, "Discharging") | {f"{BATTERY}/current_now": current, f"{BATTERY}/voltage_now": voltage}
    meter = find_power_meter(write_files(tmp_path, files))
    assert meter is not None
    mark = meter.mark(0.0)
    assert mark is not None
    assert mark.value == pytest.approx(1900)


def test_termux_and_a_phone_on_a_cable_tell_of_an_absent_battery_too() -> None:
    assert parse_termux('{"present": false, "percentage": 0, "status": "UNKNOWN"}') == BatteryReading()

    class Phone:
        said = "  status: 1\n  present: {}\n  level: {}\n  scale: {}\n  temperature: 250\n"

        def __init__(self, *values: object) -> None:
            self.text = self.said.format(*values)

        def run(self, *words: str) -> str:
            return self.text

    def objection(*values: object) -> str:
        return BatteryRule().objection(AdbRuntime(Phone(*values)).conditions())  # type: ignore[arg-type]

    assert objection("false", 0, 100) == ""
    assert objection("true", 40, 200) == "battery at 20 %, below 30 %: plug the device in"
    assert objection("true", 80, 200) == ""
