"""Agents that only the broker remembers: their last word was `ready`, and no will of theirs was ever published."""

from __future__ import annotations

import pytest
from rigs.simulated_fleet import SPACE, TOPICS, SimulatedAgent, Simulation

from fleetnas.coordinator.fleet.registry import ANSWER_S
from fleetnas.coordinator.records.plan import CampaignPlan
from fleetnas.coordinator.tuning.initial_design import InitialDesign
from fleetnas.fleet_protocol.codec import encode
from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.fleet_protocol.messages import AgentState, Inventory

PLAN = CampaignPlan(targets="auto:2", budget=8, initial_design=6, wait_for=1, grace_s=30, join_s=60, deadline_s=30)
DESIGN = InitialDesign(SPACE, count=PLAN.initial_design, seed=PLAN.seed)


def remember(fleet: Simulation, name: str) -> SimulatedAgent:
    """Leave on the broker what an agent leaves that dies together with the broker's memory of its will."""
    agent = SimulatedAgent(fleet.broker, name, fleet.clock, seed=7)
    alive = AgentState(state="ready", session=1, instance=agent.instance)
    fleet.broker.publish(TOPICS.up(name, "state"), encode(alive), retain=True)
    fleet.broker.publish(TOPICS.up(name, "info"), encode(agent.info), retain=True)
    return agent


def devices(fleet: Simulation) -> set[str]:
    return {setting_run.device for setting_run in fleet.campaign.setting_runs.values()}


def test_a_ghost_takes_no_part_and_costs_seconds() -> None:
    fleet = Simulation(PLAN, design=DESIGN)
    remember(fleet, "ghost")
    fleet.add("pi0")
    fleet.begin()
    began_s = fleet.clock.now_s
    fleet.run(until=lambda: bool(fleet.campaign.setting_runs))
    assert fleet.clock.now_s - began_s <= ANSWER_S + 2
    fleet.run()
    assert devices(fleet) == {"pi0"}
    assert fleet.campaign.finish() == "complete"
    assert any("ghost is lost: the broker remembers it" in line for line in fleet.campaign.log)


def test_agents_that_answer_at_once_are_not_waited_for() -> None:
    fleet = Simulation(PLAN, design=DESIGN)
    for seed in range(3):
        fleet.add(f"pi{seed}", seed=seed)
    for agent in fleet.agents:
        agent.step()  # what they are stands on the broker before the coordinator comes
    fleet.begin()
    began_s = fleet.clock.now_s
    fleet.run(until=lambda: bool(fleet.campaign.setting_runs))
    assert devices(fleet) == {"pi0", "pi1", "pi2"}
    assert fleet.clock.now_s - began_s <= 3


def test_a_ghost_does_not_count_as_one_of_those_that_are_waited_for() -> None:
    fleet = Simulation(PLAN.model_copy(update={"wait_for": 2}), design=DESIGN)
    remember(fleet, "ghost")
    fleet.add("pi0")
    fleet.begin()
    with pytest.raises(UsageError, match=r"1 of 2 agents appeared.*ghost: the broker remembers it.*fleetnas-agent"):
        fleet.run()


def test_a_ghost_that_was_asked_for_by_name_is_named() -> None:
    fleet = Simulation(PLAN.model_copy(update={"devices": ("pi0", "ghost")}), design=DESIGN)
    remember(fleet, "ghost")
    fleet.add("pi0")
    fleet.begin()
    with pytest.raises(UsageError, match=r"ghost did not appear.*the broker remembers it"):
        fleet.run()


@pytest.mark.parametrize("after_s", [3.0, ANSWER_S + 5])
def test_one_that_answers_after_all_takes_part(after_s: float) -> None:
    fleet = Simulation(PLAN, design=DESIGN)
    late = remember(fleet, "late")
    fleet.add("pi0")
    fleet.begin()
    began_s = fleet.clock.now_s
    fleet.run(until=lambda: fleet.clock.now_s >= began_s + after_s)
    late.start()
    fleet.agents.append(late)
    fleet.run()
    assert devices(fleet) == {"pi0", "late"}
    assert fleet.campaign.finish() == "complete"


def test_its_first_word_may_be_anything() -> None:
    fleet = Simulation(PLAN, design=DESIGN)
    late = remember(fleet, "late")
    fleet.add("pi0")
    fleet.begin()
    fleet.run(until=lambda: bool(fleet.campaign.setting_runs))
    fleet.broker.publish(TOPICS.up("late", "inventory"), encode(Inventory(session=1)))
    fleet.step()
    assert devices(fleet) == {"pi0", late.name}


def test_in_a_resumed_run_a_ghost_gets_no_task_and_is_given_up_as_lost() -> None:
    fleet = Simulation(PLAN.model_copy(update={"wait_for": 2}), design=DESIGN)
    for seed in range(2):
        fleet.add(f"pi{seed}", seed=seed)
    fleet.begin()
    fleet.run(until=lambda: len(fleet.store.outcomes("run-1")) >= 4)
    fleet.vanish()
    ghost = fleet.agents.pop()
    fleet.broker.detach(ghost.transport)
    attempts = {task.task_id: task.attempt for task in fleet.store.tasks("run-1") if task.device == ghost.name}
    fleet.begin(resume=True)
    began_s = fleet.clock.now_s
    fleet.run(until=lambda: any(setting_run.status == "lost" for setting_run in fleet.campaign.setting_runs.values()))
    assert fleet.clock.now_s - began_s <= ANSWER_S + PLAN.grace_s + 5
    fleet.run()
    assert fleet.campaign.finish() == "partial"
    for task in fleet.store.tasks("run-1"):
        if task.device == ghost.name:
            assert task.attempt == attempts[task.task_id]
