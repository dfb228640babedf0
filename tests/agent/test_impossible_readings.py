"""Broken sensors and runtimes on the device's side: a value that is not possible is unknown, and stops nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from rigs.agent_rig import Rig, measured, task
from rigs.device_trees import write_files

from fleetnas.agent.host.device import describe_device
from fleetnas.agent.host.power import energy_mj, with_power
from fleetnas.agent.host.sensors import Sensors
from fleetnas.agent.runtimes.command_runtime import parse_report
from fleetnas.fleet_protocol.errors import RuntimeUnavailableError
from fleetnas.fleet_protocol.messages import Conditions, Failed, Result


def test_a_sensor_that_says_the_impossible_counts_as_missing(tmp_path: Path) -> None:
    write_files(
        tmp_path,
        {
            "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
            "sys/class/thermal/thermal_zone0/temp": "9" * 300,
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1500000",
            "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq": "1e300",
            "proc/loadavg": "inf 0 0",
            "proc/cpuinfo": "processor: 0\nmodel name: x\n",
            "proc/meminfo": f"MemTotal: {'9' * 30} kB\n",
        },
    )
    found = Sensors(tmp_path).read()
    assert (found.temperature_c, found.clock_mhz, found.load_1min) == (None, 1500.0, None)
    profile = describe_device(tmp_path)
    assert profile.memory_mb is None
    assert [cluster.max_clock_mhz for cluster in profile.clusters] == [None]


@pytest.mark.parametrize("power_mw", [float("inf"), float("nan"), -1.0, 1e300])
def test_a_meter_that_says_the_impossible_counts_as_missing(power_mw: float) -> None:
    assert with_power(Conditions(load_1min=1.0), power_mw) == Conditions(load_1min=1.0)
    assert energy_mj(power_mw, 1.0) is None


@pytest.mark.parametrize("times", ["[1, 2, 1e999]", "[1, 2, -1]", "[1, 2, NaN]", "[1e300, 1e300, 1e300]"])
def test_a_program_that_reports_the_impossible_has_failed(times: str) -> None:
    with pytest.raises(RuntimeUnavailableError, match="cannot be used"):
        parse_report(f'{{"times_ms": {times}}}', "program")


def test_a_measurement_that_breaks_the_contract_is_a_failure_of_that_task_alone(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    agent = rig.agent()
    impossible = measured()
    paired = impossible.paired
    assert paired is not None
    rig.measurer.script.append(
        impossible.model_copy(update={"paired": paired.model_copy(update={"undisturbed_ms": 1e7})})
    )
    rig.run(agent)
    rig.coordinator.send("pi", "task", task(1))
    rig.run(agent)
    (failed,) = rig.coordinator.updates("failed")
    assert isinstance(failed, Failed)
    assert failed.reason == "bad_output"
    assert "undisturbed_ms" in failed.detail
    rig.coordinator.send("pi", "task", task(2))
    rig.run(agent)
    assert isinstance(rig.coordinator.updates("result")[0], Result)
