"""Power meters of boards that are not at hand, and the energy that a measurement makes of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from rigs.device_trees import BATTERY, agx_orin_rails, battery_files, ina3221_files, jetson_orin_nano_files, write_files
from rigs.supernets import random_bundle

from fleetnas.agent.host.power import IDLE_HOLDS_S, BlockPower, Gauge, IdlePower, Mark, PowerMeter, find_power_meter
from fleetnas.agent.host.sensors import Sensors
from fleetnas.agent.measuring.messages import MeasuredReply, MeasureOrder
from fleetnas.agent.measuring.order_executor import OrderExecutor
from fleetnas.fleet_protocol.messages import MeasurementProtocol, RuntimeSetting
from fleetnas.supernet_export.spaces.registry import make_space

RAPL = "sys/class/powercap/intel-rapl:0"


def power_mw(meter: PowerMeter | None) -> float | None:
    """What a gauge shows now."""
    assert isinstance(meter, Gauge)
    return meter.power_mw()


class ScriptedMeter(PowerMeter):
    """A counter on a clock of its own: shows what the test set."""

    source = "script"

    def __init__(self) -> None:
        self.now, self.energy_mj, self.marks = 0.0, 0.0, 0

    def clock(self) -> float:
        return self.now

    def draw(self, seconds: float, mw: float) -> None:
        self.now += seconds
        self.energy_mj += seconds * mw

    def mark(self, now_s: float) -> Mark:
        self.marks += 1
        return Mark(now_s, self.energy_mj)

    def mean_mw(self, begin: Mark, end: Mark) -> float | None:
        return (end.value - begin.value) / (end.at_s - begin.at_s)


# -- meters --------------------------------------------------------------------------------------------------------


def test_a_jetson_tells_the_power_of_the_rail_that_feeds_everything(tmp_path: Path) -> None:
    meter = find_power_meter(write_files(tmp_path, jetson_orin_nano_files()))
    assert meter is not None
    assert meter.source == "ina3221 VDD_IN"
    assert power_mw(meter) == pytest.approx(5.04 * 1200)


def test_where_no_rail_feeds_everything_those_that_do_are_added_once(tmp_path: Path) -> None:
    meter = find_power_meter(write_files(tmp_path, agx_orin_rails()))
    assert meter is not None
    assert meter.source == "ina3221 VDD_CPU_CV+VDD_GPU_SOC+VIN_SYS_5V0"
    assert power_mw(meter) == pytest.approx(12 * 400 + 12 * 100 + 5 * 800)


def test_a_chip_seen_through_two_links_counts_once(tmp_path: Path) -> None:
    write_files(tmp_path, ina3221_files("1-0040", "hwmon1", {1: ("CPU", 5000, 100), 2: ("GPU", 5000, 100)}))
    device = tmp_path / "sys/bus/i2c/drivers/ina3221/1-0040"
    (device.parent / "link").symlink_to(device)
    assert power_mw(find_power_meter(tmp_path)) == pytest.approx(1000)


def test_a_rail_that_stops_answering_is_no_reading(tmp_path: Path) -> None:
    meter = find_power_meter(write_files(tmp_path, jetson_orin_nano_files()))
    write_files(tmp_path, {"sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1/curr1_input": ""})
    assert meter is not None
    assert meter.mark(0.0) is None


def test_a_fuel_gauge_counts_while_the_battery_discharges(tmp_path: Path) -> None:
    # Kernels agree that discharging is negative; many phones' drivers do not.
    for current in (-500_000, 500_000):
        write_files(tmp_path, battery_files(80, "Discharging", current_ua=current))
        assert power_mw(find_power_meter(tmp_path)) == pytest.approx(3.8 * 500)
    write_files(tmp_path, {f"{BATTERY}/power_now": "2500000\n"})
    assert power_mw(find_power_meter(tmp_path)) == pytest.approx(2500)
    write_files(tmp_path, {f"{BATTERY}/status": "Charging\n"})
    meter = find_power_meter(tmp_path)
    assert meter is not None
    assert meter.mark(0.0) is None


def test_the_battery_of_a_mouse_is_not_the_devices(tmp_path: Path) -> None:
    write_files(tmp_path, battery_files(5, "Discharging", current_ua=1000) | {f"{BATTERY}/scope": "Device\n"})
    assert find_power_meter(tmp_path) is None
    assert Sensors(tmp_path).read().battery_percent is None


def test_package_counters_are_added_and_may_wrap(tmp_path: Path) -> None:
    other = RAPL.replace(":0", ":1")
    files = {
        f"{RAPL}/name": "package-0\n",
        f"{RAPL}/energy_uj": "990000\n",
        f"{RAPL}/max_energy_range_uj": "1000000\n",
        f"{RAPL}:0/name": "core\n",
        f"{RAPL}:0/energy_uj": "5\n",
        f"{other}/name": "package-1\n",
        f"{other}/energy_uj": "100000\n",
        f"{other}/max_energy_range_uj": "1000000\n",
        "sys/class/powercap/intel-rapl:2/name": "psys\n",
        "sys/class/powercap/intel-rapl:2/energy_uj": "7\n",
    }
    meter = find_power_meter(write_files(tmp_path, files))
    assert meter is not None
    assert meter.source == "rapl 2 packages"
    begin = meter.mark(10.0)
    write_files(tmp_path, {f"{RAPL}/energy_uj": "40000\n", f"{other}/energy_uj": "150000\n"})
    end = meter.mark(12.0)
    assert begin is not None
    assert end is not None
    assert meter.mean_mw(begin, end) == pytest.approx((50 + 50) / 2)
    assert meter.mean_mw(end, end) is None


def test_counters_that_only_root_may_read_are_no_meter(tmp_path: Path) -> None:
    assert find_power_meter(write_files(tmp_path, {f"{RAPL}/name": "package-0\n"})) is None


# -- from marks to energy ------------------------------------------------------------------------------------------


def test_only_what_is_drawn_inside_blocks_counts() -> None:
    meter = ScriptedMeter()
    power = BlockPower(meter, meter.clock)
    for _ in range(2):  # a noisy measurement is repeated: three blocks, then three more
        for number in range(3):
            power.end_block(number / 3)
            meter.draw(0.5, 9000)  # telling the progress
            power.begin_block()
            meter.draw(1.0, 4000 + 100 * number)
        power.end_block(1.0)
        power.begin_block()
        meter.draw(2.0, 50)  # the judging between them
    assert power.mean_mw == pytest.approx(4100)
    assert meter.marks == 2 * (3 + 3) + 2


def test_without_a_meter_there_is_no_energy() -> None:
    power = BlockPower(None)
    power.begin_block()
    power.end_block(1.0)
    assert power.mean_mw is None
    assert IdlePower(None).mw() is None


def test_idle_power_is_read_at_rest_and_seldom() -> None:
    meter = ScriptedMeter()
    rests: list[float] = []

    def rest(seconds: float) -> None:
        rests.append(seconds)
        meter.draw(seconds, 1200 + 100 * len(rests))

    idle = IdlePower(meter, meter.clock, rest)
    meter.draw(1.0, 8000)
    assert idle.mw() == pytest.approx(1300)
    meter.draw(IDLE_HOLDS_S - 2, 8000)
    assert idle.mw() == pytest.approx(1300)
    meter.draw(2.0, 8000)
    assert idle.mw() == pytest.approx(1400)
    assert len(rests) == 2


@pytest.mark.parametrize(("files", "milliwatts"), [(jetson_orin_nano_files(), 6048.0), ({}, None)])
def test_a_measurement_carries_the_energy_of_an_inference_where_the_board_tells_it(
    tmp_path: Path, files: dict[str, str], milliwatts: float | None
) -> None:
    space = make_space("digits")
    bundle = random_bundle(tmp_path / "digits.supernet", space)
    bench = OrderExecutor(Sensors(write_files(tmp_path / "board", {"proc/loadavg": "0 0 0\n"} | files)))
    reply = bench.execute(
        MeasureOrder(
            bundle_path=str(bundle.path),
            bundle_sha256=bundle.sha256,
            architecture=space.decode(space.smallest())[0],
            setting=RuntimeSetting(),
            protocol=MeasurementProtocol(warmup_runs=1, warmup_s=0, min_runs=6, min_s=0, half_width_percent=1000),
        ),
        lambda phase, fraction: None,
    )
    assert isinstance(reply, MeasuredReply)
    assert (reply.before.power_mw, reply.after.power_mw) == (milliwatts, pytest.approx(milliwatts))
    expected = milliwatts * reply.timing.median_ms / 1000 if milliwatts is not None else None
    assert reply.energy_mj == pytest.approx(expected)
