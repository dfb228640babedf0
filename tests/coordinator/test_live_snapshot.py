"""Snapshots of device settings in a running campaign."""

from __future__ import annotations

import pytest
from rigs.simulated_fleet import TOPICS, Simulation

from fleetnas.coordinator.records.data_quality import DataQuality
from fleetnas.coordinator.records.plan import CampaignPlan
from fleetnas.coordinator.records.snapshot import DeviceSnapshot, DeviceState, Snapshot
from fleetnas.coordinator.view import wording
from fleetnas.fleet_protocol.codec import encode
from fleetnas.fleet_protocol.messages import AgentState, Progress, TaskKey

LOW = "battery at 22 %, below 30 %: plug the device in"


def test_a_device_that_waits_says_for_what() -> None:
    fleet = Simulation(CampaignPlan(targets="auto:2", wait_for=1))
    fleet.add("phone")
    fleet.begin()
    fleet.run(until=lambda: bool(fleet.campaign.setting_runs))
    setting_run = next(iter(fleet.campaign.setting_runs.values()))
    fleet.run(until=lambda: bool(setting_run.leased))
    entry = fleet.campaign.registry.agents["phone"]
    task_id, leased = next(iter(setting_run.leased.items()))
    waiting = Progress(task=TaskKey(task_id=task_id, attempt=leased.record.attempt), phase="waiting", fraction=0)

    def said(detail: str) -> tuple[str, str]:
        state = AgentState(state="busy", session=entry.session, instance=entry.instance, detail=detail)
        fleet.broker.publish(TOPICS.up("phone", "state"), encode(state))
        fleet.broker.publish(TOPICS.up("phone", "task"), encode(waiting))
        while (event := fleet.transport.poll(0)) is not None:
            fleet.campaign.on_event(event)
        (device,) = fleet.campaign.snapshot(0.0).devices
        return device.state, device.state_detail

    assert said(LOW) == ("waiting", LOW)
    assert said("") == ("waiting", "for another agent of its host")


@pytest.mark.parametrize(
    ("measured", "state", "warned"),
    [(1, "measuring", False), (7, "measuring", False), (8, "measuring", True), (1, "done", True)],
)
def test_views_warn_of_a_slowed_device_once_there_is_something_to_count(
    measured: int, state: DeviceState, warned: bool
) -> None:
    device = DeviceSnapshot("pi4", "onnxruntime_cpu_1t_fp32", state, quality=DataQuality(slowed=measured))
    snapshot = Snapshot("run-1", "digits.supernet", 0.0, 1.0, "searching", (device,))
    assert device.often_slowed is warned
    assert bool(wording.slowed_warning(snapshot.slowed)) is warned
