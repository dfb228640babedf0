"""Results of tasks that the present campaign never gave out: no agent repeats one forever, and none is lost."""

from __future__ import annotations

import pytest
from rigs.simulated_fleet import TOPICS, SimulatedAgent, Simulation, measurement

from fleetnas.coordinator.fleet.orphaned_results import FORGET_AFTER_S
from fleetnas.coordinator.records.plan import CampaignPlan
from fleetnas.fleet_protocol.codec import decode, encode
from fleetnas.fleet_protocol.messages import Failed, Measurement, Progress, Result, TaskKey
from fleetnas.fleet_protocol.orders import Acknowledgement
from fleetnas.fleet_protocol.transports.base import Received

PLAN = CampaignPlan(targets="auto:2", budget=10, initial_design=6, wait_for=1, grace_s=5)


def hold(agent: SimulatedAgent, key: TaskKey, latency_ms: float = 3.0) -> None:
    """Put a result into the agent's outbox, as if it had been measured when nobody listened."""
    agent.outbox[key] = encode(Result(task=key, measurement=measurement(latency_ms)))


@pytest.fixture
def second_run() -> Simulation:
    """A fleet whose first run was left with one result that never arrived, and now has a second run."""
    fleet = Simulation(PLAN)
    agent = fleet.add("pi0")
    fleet.begin()
    fleet.run(until=lambda: len(fleet.store.outcomes("run-1")) >= 3)
    fleet.vanish()
    agent.step()
    while agent.queue:
        fleet.clock.now_s += 1
        agent.step()
    assert agent.outbox
    fleet.run_id = "run-2"
    return fleet


def test_a_result_of_an_earlier_run_is_stored_there_and_acknowledged(second_run: Simulation) -> None:
    (agent,) = second_run.agents
    held, before = set(agent.outbox), len(second_run.store.outcomes("run-1"))
    second_run.begin()
    second_run.run()
    assert not agent.outbox
    stored = [found.key for found in second_run.store.outcomes("run-1")]
    assert len(stored) == before + len(held)
    assert held <= set(stored)
    assert any("run-1" in line for line in second_run.campaign.log)
    # The second run has learned from its own measurements only.
    assert all(found.task.run_id == "run-2" for found in second_run.store.outcomes("run-2"))


def test_the_earlier_run_goes_on_with_it_when_it_is_resumed(second_run: Simulation) -> None:
    (agent,) = second_run.agents
    held = {key.task_id for key in agent.outbox}
    second_run.begin()
    second_run.run()
    second_run.campaign.finish()
    second_run.vanish()
    second_run.run_id = "run-1"
    agent.measured.clear()
    second_run.begin(resume=True)
    second_run.run()
    once = [found.key for found in second_run.store.outcomes("run-1") if found.key.task_id in held]
    assert sorted(key.task_id for key in once) == sorted(held)


def test_a_result_of_no_run_of_the_store_is_forgotten_once_nobody_came_for_it() -> None:
    fleet = Simulation(PLAN)
    agent = fleet.add("pi0")
    foreign = TaskKey(task_id="elsewhere.7", attempt=1)
    hold(agent, foreign)
    acknowledged: list[Acknowledgement] = []
    listener = fleet.broker.transport("listener")
    listener.subscribe(TOPICS.down("pi0", "ack"))
    listener.start()
    fleet.begin()
    began_s = fleet.clock.now_s
    while foreign in agent.outbox and fleet.clock.now_s < began_s + 10 * FORGET_AFTER_S:
        fleet.step()
        while (event := listener.poll(0)) is not None:
            if isinstance(event, Received):
                acknowledged.append(decode(Acknowledgement, event.payload))
    assert foreign not in agent.outbox
    assert fleet.clock.now_s - began_s >= FORGET_AFTER_S
    assert [(order.task, order.stored) for order in acknowledged if order.task == foreign] == [(foreign, False)]
    assert all(order.stored for order in acknowledged if order.task != foreign)
    assert any("no coordinator has come for it" in line for line in fleet.campaign.log)


def test_what_another_agent_was_asked_for_is_neither_stored_nor_acknowledged(second_run: Simulation) -> None:
    (agent,) = second_run.agents
    stolen = next(iter(agent.outbox))
    thief = second_run.add("thief", seed=5)
    hold(thief, stolen)
    agent.outbox.clear()
    before = len(second_run.store.outcomes("run-1"))
    second_run.begin()
    second_run.run()
    assert stolen in thief.outbox
    assert len(second_run.store.outcomes("run-1")) == before
    assert any("not given" in line for line in second_run.refused)


def test_a_task_that_an_agent_dropped_as_it_was_told_has_no_outcome(second_run: Simulation) -> None:
    (agent,) = second_run.agents
    key = next(iter(agent.outbox))
    cancelled = Failed(task=key, reason="cancelled", detail="by the coordinator")
    agent.outbox = {key: encode(cancelled)}
    before = len(second_run.store.outcomes("run-1"))
    second_run.begin()
    second_run.run(until=lambda: len(second_run.store.outcomes("run-2")) >= 2)
    assert len(second_run.store.outcomes("run-1")) == before


def test_a_result_that_another_coordinator_of_the_store_took_first_is_learned_from() -> None:
    fleet = Simulation(PLAN)
    agent = fleet.add("pi0")
    fleet.begin()
    fleet.run(until=lambda: bool(agent.queue))
    key = agent.queue[0].task
    took = measurement(3.0)
    assert fleet.store.add_outcome(key, took, 1.0)
    (setting_run,) = fleet.campaign.setting_runs.values()
    before = setting_run.search.measurements
    agent.transport.publish(TOPICS.up("pi0", "task"), encode(Result(task=key, measurement=took)))
    fleet.step(0.0)
    assert setting_run.search.measurements == before + 1
    outcomes = [found.outcome for found in fleet.store.outcomes("run-1") if found.key == key]
    assert outcomes == [took]
    assert isinstance(outcomes[0], Measurement)


def test_what_is_left_of_a_killed_coordinators_baseline_is_forgotten_at_once() -> None:
    fleet = Simulation(PLAN)
    agent = fleet.add("pi0")
    left = TaskKey(task_id="run-1.b0c0ffe-5", attempt=1)
    hold(agent, left)
    agent.transport.publish(TOPICS.up("pi0", "task"), encode(Progress(task=left, phase="measuring", fraction=0.5)))
    began_s = fleet.clock.now_s
    fleet.begin()
    fleet.run(until=lambda: left not in agent.outbox)
    assert fleet.clock.now_s - began_s < FORGET_AFTER_S
    assert fleet.refused == []
