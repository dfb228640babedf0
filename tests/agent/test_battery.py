"""A device with a low battery, or one that is charged hot, rests instead of measuring, and says so once."""

from __future__ import annotations

import logging
from itertools import groupby
from pathlib import Path

import pytest
from rigs.agent_rig import PROFILE, Rig, measured, task
from rigs.device_trees import battery_files, write_files
from rigs.runtime_stand_ins import attach_phone
from rigs.supernets import random_bundle

from fleetnas.agent.host.battery import Battery, BatteryReading, BatteryRule, parse_termux
from fleetnas.agent.host.sensors import Sensors
from fleetnas.agent.measuring.messages import FailedReply, MeasuredReply, MeasureOrder, UnreadyReply
from fleetnas.agent.measuring.order_executor import OrderExecutor
from fleetnas.agent.runtimes.adb_runtime import AdbRuntime
from fleetnas.agent.service.task_runner import RESTING_S
from fleetnas.coordinator.fleet.registry import FleetRegistry
from fleetnas.fleet_protocol.messages import AgentInfo, AgentState, Conditions, MeasurementProtocol, RuntimeSetting
from fleetnas.fleet_protocol.orders import CancelTask
from fleetnas.supernet_export.spaces.registry import make_space

LOW = "battery at 22 %, below 30 %: plug the device in"


@pytest.mark.parametrize(
    ("percent", "status", "temperature_c", "says"),
    [
        (29, "Discharging", 25, "battery at 29 %, below 30 %: plug the device in"),
        (30, "Discharging", 25, ""),
        (5, "Charging", 25, ""),
        (5, "Not charging", 25, ""),
        (5, "Unknown", 25, "battery at 5 %, below 30 %: plug the device in"),
        (90, "Charging", 40, "battery charges at 40 C, 40 C or more: unplug or cool the device"),
        (90, "Charging", 39.4, ""),
        (90, "Full", 55, ""),
        (90, "Discharging", 55, ""),
    ],
)
def test_the_rule_on_what_the_kernel_says(
    tmp_path: Path, percent: int, status: str, temperature_c: float, says: str
) -> None:
    now = Sensors(write_files(tmp_path, battery_files(percent, status, temperature_c))).read()
    assert BatteryRule().objection(now) == says


def test_the_rule_can_be_changed_and_switched_off() -> None:
    low = Conditions(battery_percent=10, battery_state="discharging")
    hot = Conditions(battery_percent=90, battery_state="charging", battery_temperature_c=44)
    assert BatteryRule(min_percent=0, max_charging_c=45).objection(low) == ""
    assert BatteryRule(min_percent=0, max_charging_c=45).objection(hot) == ""
    assert BatteryRule(min_percent=50).objection(Conditions()) == "", "a device without a battery never waits for one"


def test_termux_tells_the_battery_where_the_kernel_does_not() -> None:
    said = """{
  "present": true,
  "technology": "Li-ion",
  "health": "GOOD",
  "plugged": "UNPLUGGED",
  "status": "DISCHARGING",
  "temperature": 28.399999618530273,
  "voltage": 3846,
  "current": -312000,
  "percentage": 64,
  "level": 64,
  "scale": 100
}
"""
    found = parse_termux(said)
    assert (found.percent, found.state) == (64, "discharging")
    assert found.temperature_c == pytest.approx(28.4)
    assert parse_termux(said.replace("DISCHARGING", "NOT_CHARGING")).state == "idle"
    for rubbish in ("", "The Termux:API app is not installed", "[]", '{"percentage": null}'):
        assert parse_termux(rubbish) == BatteryReading()


def test_termux_is_asked_seldom_and_never_again_once_it_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fleetnas.agent.host.battery.find_battery", lambda root: None)
    program = tmp_path / "termux-battery-status"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(__import__("sys").modules, "psutil", None)
    answers = ['{"percentage": 50}', '{"percentage": 49}', ""]
    asked: list[float] = []
    now = 0.0

    def run(command: list[str]) -> str:
        assert command == [str(program)]
        asked.append(now)
        return answers[len(asked) - 1]

    battery = Battery(run=run, clock=lambda: now)

    def percent_at(moment: float) -> float | None:
        nonlocal now
        now = moment
        return battery.read().percent

    seen = [percent_at(moment) for moment in (0.0, 10.0, 29.0, 30.0, 60.0, 90.0, 500.0)]
    assert seen == [50, 50, 50, 49, None, None, None]
    assert asked == [0.0, 30.0, 60.0]


# -- the child -----------------------------------------------------------------------------------------------------


def test_the_child_looks_at_the_battery_before_it_measures(tmp_path: Path) -> None:
    space = make_space("digits")
    bundle = random_bundle(tmp_path / "digits.supernet", space)
    phone = write_files(tmp_path / "phone", battery_files(22, "Discharging"))
    bench = OrderExecutor(Sensors(phone))
    order = MeasureOrder(
        bundle_path=str(bundle.path),
        bundle_sha256=bundle.sha256,
        architecture=space.decode(space.smallest())[0],
        setting=RuntimeSetting(),
        protocol=MeasurementProtocol(warmup_runs=1, warmup_s=0, min_runs=3, min_s=0, half_width_percent=1000),
        battery=BatteryRule(),
    )
    assert bench.execute(order, lambda phase, fraction: None) == UnreadyReply(reason=LOW)
    write_files(phone, battery_files(22, "Charging"))
    reply = bench.execute(order, lambda phase, fraction: None)
    assert isinstance(reply, MeasuredReply)
    assert (reply.before.battery_percent, reply.before.battery_state) == (22, "charging")


@pytest.mark.parametrize(
    ("battery", "says"),
    [
        ("22 3 250", LOW),  # a cable that does not charge
        ("22 2 250", ""),
        ("95 2 430", "battery charges at 43 C, 40 C or more: unplug or cool the device"),
        ("95 5 430", ""),
    ],
)
def test_a_phone_on_a_cable_keeps_the_same_rule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, battery: str, says: str
) -> None:
    attach_phone(tmp_path, monkeypatch)
    monkeypatch.setenv("PHONE_BATTERY", battery)
    assert BatteryRule().objection(AdbRuntime().conditions()) == says


# -- the agent -----------------------------------------------------------------------------------------------------


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def states(rig: Rig) -> list[tuple[str, str]]:
    said = [s for s in rig.coordinator.on("state") if isinstance(s, AgentState) and s.session > 0]
    return [state for state, _ in groupby((s.state, s.detail) for s in said)]  # some are said again


def test_a_resting_agent_says_why_once_and_measures_when_it_may(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    agent = rig.agent()
    rig.run(agent)
    rig.coordinator.heard.clear()
    rig.measurer.script.extend([UnreadyReply(reason=LOW)] * 3)
    rig.coordinator.send("pi", "task", task())
    rig.run(agent, seconds=2 * RESTING_S)
    assert states(rig) == [("busy", ""), ("busy", LOW)]
    assert rig.coordinator.updates("result") == []
    rig.run(agent, seconds=RESTING_S + 5)
    assert states(rig)[-2:] == [("busy", ""), ("ready", "")]
    assert len(rig.coordinator.updates("result")) == 1
    assert len(rig.measurer.orders) == 4
    assert sum(LOW in record.getMessage() for record in caplog.records) == 1
    assert "goes on" in caplog.text


def test_another_reason_is_told_too(rig: Rig) -> None:
    agent = rig.agent()
    rig.run(agent)
    rig.measurer.script.extend([UnreadyReply(reason=LOW), UnreadyReply(reason="battery charges at 44 C")])
    rig.coordinator.send("pi", "task", task())
    rig.run(agent, seconds=3 * RESTING_S)
    assert [detail for _, detail in states(rig) if detail] == [LOW, "battery charges at 44 C"]


def test_resting_does_not_use_up_the_deadline_nor_the_lease(rig: Rig) -> None:
    agent = rig.agent()
    rig.run(agent)
    rig.measurer.script.extend([UnreadyReply(reason=LOW)] * 20)
    rig.coordinator.send("pi", "task", task(deadline_s=40))
    rig.run(agent, seconds=21 * RESTING_S)
    waits = [update for update in rig.coordinator.updates("progress") if update.phase == "waiting"]
    assert len(waits) >= 60, "each renews the lease"
    assert {update.phase for update in rig.coordinator.updates("progress")} <= {"fetching", "building", "waiting"}
    assert len(rig.coordinator.updates("result")) == 1
    assert rig.coordinator.updates("failed") == []


def test_a_task_that_rests_can_be_cancelled_and_the_next_one_works(rig: Rig) -> None:
    agent = rig.agent()
    rig.run(agent)
    rig.measurer.script.extend([UnreadyReply(reason=LOW), FailedReply(reason="runtime"), measured()])
    rig.coordinator.send("pi", "task", task(1))
    rig.run(agent)
    rig.coordinator.send("pi", "task", CancelTask(task=task(1).task))
    rig.run(agent)
    assert states(rig)[-1] == ("ready", "")
    rig.coordinator.send("pi", "task", task(2))
    rig.run(agent)
    assert [failed.reason for failed in rig.coordinator.updates("failed")] == ["cancelled", "runtime"]


def test_every_order_carries_the_rule_of_this_agent(rig: Rig) -> None:
    agent = rig.agent(battery=BatteryRule(min_percent=55))
    rig.run(agent)
    rig.coordinator.send("pi", "task", task())
    rig.run(agent)
    order = rig.measurer.orders[-1]
    assert isinstance(order, MeasureOrder)
    assert order.battery == BatteryRule(min_percent=55)


def test_who_asks_for_the_fleet_reads_why_a_device_waits() -> None:
    registry = FleetRegistry()
    info = AgentInfo(agent="galaxy", session=3, profile=PROFILE, settings=(RuntimeSetting(),), versions={})
    registry.on_info("galaxy", info, 0.0)
    entry = registry.on_state("galaxy", AgentState(state="busy", session=3, instance="a", detail=LOW), 0.0)
    assert entry.idle_reason() == f"waiting: {LOW}"
    registry.on_state("galaxy", AgentState(state="busy", session=3, instance="a"), 1.0)
    assert entry.idle_reason() == "working on a task"
