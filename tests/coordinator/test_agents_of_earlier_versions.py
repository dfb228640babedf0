"""What agents of earlier versions cannot do: the line says which side to update, and nothing is silently left out."""

from __future__ import annotations

import pytest
from rigs.simulated_fleet import Simulation

from fleetnas.coordinator.app.target_checks import checked_on
from fleetnas.coordinator.records.agent_abilities import layers_objection, models_objection
from fleetnas.coordinator.records.plan import CampaignPlan
from fleetnas.coordinator.records.targets import TargetRequest
from fleetnas.device_profiles.profile import DeviceProfile
from fleetnas.fleet_protocol.messages import SCHEMA_MINOR, AgentInfo, RuntimeSetting

ONNX, LITERT = RuntimeSetting(), RuntimeSetting(runtime="litert")


def announced(minor: int, *, accepts_models: bool = False) -> AgentInfo:
    profile = DeviceProfile(model="simulated", machine="none", cores=1)
    return AgentInfo(
        agent="pi4",
        session=1,
        profile=profile,
        settings=(ONNX,),
        versions={},
        schema_minor=minor,
        accepts_models=accepts_models,
    )


@pytest.mark.parametrize("minor", [0, 1])
def test_an_older_agent_is_told_to_be_updated(minor: int) -> None:
    old = announced(minor)
    assert models_objection(old) == (
        "the agent of pi4 is too old to measure model files; update fleetnas there, and start it with "
        "`fleetnas-agent run --accept-models`"
    )
    assert layers_objection(old, ONNX) == "the agent of pi4 is too old to time layers; update fleetnas there"
    (reason,) = checked_on(TargetRequest.parse("20,p95:33"), old, ONNX).values()
    assert reason == "the agent of pi4 is too old to report percentiles; update fleetnas there"


def test_an_agent_of_today_is_told_what_it_is_to_be_started_with() -> None:
    today = announced(SCHEMA_MINOR)
    assert models_objection(today) == (
        "its agent takes no model files; start it with `fleetnas-agent run --accept-models`"
    )
    assert models_objection(announced(SCHEMA_MINOR, accepts_models=True)) == ""
    assert layers_objection(today, ONNX) == ""
    assert layers_objection(today, LITERT) == "the profiler of litert cannot be read, only that of onnxruntime"


@pytest.mark.parametrize("asked", [True, False])
def test_a_search_says_whose_layers_are_not_timed(asked: bool) -> None:
    fleet = Simulation(CampaignPlan(targets="auto:1", budget=5, initial_design=4, wait_for=1, profile_winners=asked))
    fleet.add("pi4", settings=(ONNX, LITERT))
    fleet.begin()
    fleet.run()
    told = [line for line in fleet.campaign.log if "layers of winners are not timed" in line]
    assert len(told) == asked
    assert all(LITERT.label in line for line in told)
