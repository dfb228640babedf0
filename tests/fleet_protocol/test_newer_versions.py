"""Programs of different versions: what a newer one adds is ignored, what it changes is refused with an answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rigs.agent_rig import TOPICS, Rig, task
from rigs.simulated_fleet import TOPICS as FLEET_TOPICS
from rigs.simulated_fleet import SimulatedAgent, Simulation, measurement

from fleetnas.coordinator.records.plan import CampaignPlan
from fleetnas.fleet_protocol import codec
from fleetnas.fleet_protocol.codec import decode, decode_task, decode_task_update, encode
from fleetnas.fleet_protocol.envelope import read_envelope
from fleetnas.fleet_protocol.errors import ProtocolError
from fleetnas.fleet_protocol.messages import SCHEMA_MINOR, AgentState, Message, Rejected, Result, TaskKey
from fleetnas.fleet_protocol.orders import CancelTask, MeasureTask

KEY = TaskKey(task_id="run-1.1", attempt=2)
NEWER = SCHEMA_MINOR + 1


def changed(message: Message, **fields: Any) -> bytes:
    return json.dumps({**json.loads(encode(message)), **fields}).encode()


def with_unknown_fields(message: Message, **fields: Any) -> bytes:
    """The message with a field that is unknown here at every level."""
    document = json.loads(encode(message))

    def add(place: Any) -> None:
        if isinstance(place, dict):
            for inner in list(place.values()):
                add(inner)
            place["from_the_future"] = {"any": ["thing"]}
        elif isinstance(place, list):
            for inner in place:
                add(inner)

    add(document)
    return json.dumps({**document, **fields}).encode()


@pytest.mark.parametrize("message", [task(), CancelTask(task=KEY)], ids=["measure", "cancel"])
def test_unknown_fields_of_a_newer_minor_version_are_ignored(message: Any) -> None:
    found = decode_task(with_unknown_fields(message, schema_minor=NEWER))
    assert found.model_copy(update={"schema_minor": 0}) == message


def test_so_are_those_of_results_and_states() -> None:
    result = Result(task=KEY, measurement=measurement(1.0))
    found = decode_task_update(with_unknown_fields(result, schema_minor=NEWER))
    assert found.model_copy(update={"schema_minor": 0}) == result
    state = AgentState(state="ready", session=1, instance="x")
    assert decode(AgentState, with_unknown_fields(state, schema_minor=NEWER)).session == 1


def test_unknown_fields_of_the_same_version_are_refused() -> None:
    with pytest.raises(ProtocolError, match="from_the_future"):
        decode_task(with_unknown_fields(task()))


@pytest.mark.parametrize(
    "fields", [{"deadline_s": -1}, {"op": "compile"}, {"setting": {"runtime": "tpu"}}, {"task": {"task_id": "x"}}]
)
def test_a_newer_minor_version_excuses_nothing_else(fields: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        decode_task(with_unknown_fields(task(), schema_minor=NEWER, **fields))


def test_a_newer_version_is_refused_and_named() -> None:
    with pytest.raises(ProtocolError, match=r"version 2 .* understands version 1; update the older"):
        decode_task(changed(task(), schema_version=2, task={"id": 3}))


@pytest.mark.parametrize("version", ["2", 1.5, None, [], -1, 10**400])
def test_what_is_no_version_is_refused_too(version: Any) -> None:
    payload = json.dumps({**json.loads(encode(task())), "schema_version": 0}).replace(
        '"schema_version": 0', f'"schema_version": {json.dumps(version)}'
    )
    with pytest.raises(ProtocolError):
        decode_task(payload.encode())


def test_the_envelope_of_every_version_is_read() -> None:
    told = {"schema_version": 7, "op": "measure", "task": {"task_id": "run-1.1", "attempt": 2, "shard": 1}, "x": [1]}
    envelope = read_envelope(json.dumps(told).encode())
    assert envelope is not None
    assert (envelope.key, envelope.op, envelope.schema_version) == (KEY, "measure", 7)
    assert read_envelope(b"[]") is None
    assert read_envelope(b'{"task": {"task_id": "../x", "attempt": 1}}') is None


# -- an agent that is older than its coordinator ---------------------------------------------------------------


@pytest.mark.parametrize("fields", [{"schema_version": 2}, {"setting": {"runtime": "tpu"}}, {"new_field": 1}])
def test_an_order_that_an_agent_does_not_understand_is_answered(tmp_path: Path, fields: dict[str, Any]) -> None:
    rig = Rig(tmp_path)
    agent = rig.agent()
    rig.run(agent)
    rig.coordinator.transport.publish(TOPICS.down("pi", "task"), changed(task(4), **fields))
    rig.run(agent)
    (answer,) = rig.coordinator.updates("rejected")
    assert isinstance(answer, Rejected)
    assert (answer.task, answer.reason) == (task(4).task, "not_understood")
    assert answer.detail
    rig.coordinator.send("pi", "task", task(5))
    rig.run(agent)
    assert [result.task for result in rig.coordinator.updates("result")] == [task(5).task]  # type: ignore[attr-defined]


def test_an_order_with_a_newer_minor_version_is_carried_out(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    agent = rig.agent()
    rig.run(agent)
    rig.coordinator.transport.publish(TOPICS.down("pi", "task"), with_unknown_fields(task(4), schema_minor=NEWER))
    rig.run(agent)
    assert [result.task for result in rig.coordinator.updates("result")] == [task(4).task]  # type: ignore[attr-defined]


def test_a_flood_of_such_orders_is_answered_a_few_times(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    agent = rig.agent()
    rig.run(agent)
    for number in range(200):
        rig.coordinator.transport.publish(TOPICS.down("pi", "task"), changed(task(number), schema_version=2))
    rig.coordinator.transport.publish(TOPICS.down("pi", "task"), changed(CancelTask(task=KEY), schema_version=2))
    rig.run(agent)
    assert 0 < len(rig.coordinator.updates("rejected")) <= 10


# -- a coordinator that is newer than one of its agents --------------------------------------------------------


class OlderAgent(SimulatedAgent):
    """Understands no order of this coordinator, and says so."""

    def _work(self, order: MeasureTask) -> None:
        self._say("task", Rejected(task=order.task, reason="not_understood", detail="update the older of the two"))


class NewerAgent(SimulatedAgent):
    """Its results have fields that are unknown here."""

    minor = NEWER

    def _work(self, order: MeasureTask) -> None:
        result = Result(task=order.task, measurement=self._measure(order))
        payload = with_unknown_fields(result, schema_minor=self.minor)
        self.transport.publish(FLEET_TOPICS.up(self.name, "task"), payload)


def test_a_campaign_with_agents_of_other_versions() -> None:
    plan = CampaignPlan(targets="auto:2", budget=10, initial_design=6, wait_for=3, grace_s=30, join_s=60, deadline_s=60)
    fleet = Simulation(plan)
    fleet.add("same", seed=0)
    fleet.take_in(OlderAgent(fleet.broker, "older", fleet.clock, seed=1))
    fleet.take_in(NewerAgent(fleet.broker, "newer", fleet.clock, seed=2))
    fleet.begin()
    began_s = fleet.clock.now_s
    fleet.run()
    found = {
        setting_run.device: (setting_run.status, setting_run.reason)
        for setting_run in fleet.campaign.setting_runs.values()
    }
    assert found["same"] == found["newer"] == ("finished", "")
    assert found["older"] == ("failed", "it refuses tasks (not_understood): update the older of the two")
    assert fleet.clock.now_s - began_s < 200, "no lease had to end"


def test_a_program_with_a_minor_version_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "SCHEMA_MINOR", 3)
    assert json.loads(encode(CancelTask(task=KEY)))["schema_minor"] == 3
