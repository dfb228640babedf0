"""Messages lost, doubled, delayed and out of order, processes killed and connections cut, over many seeds."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
from rigs.adverse_fleet import Adversary, AdverseFleet

from fleetnas.coordinator.records.events import MeasurementTaken
from fleetnas.coordinator.records.plan import CampaignPlan
from fleetnas.coordinator.records.stored import OutcomeRecord
from fleetnas.fleet_protocol.messages import Measurement, Result

PLAN = CampaignPlan(targets="auto:3", budget=12, initial_design=6, wait_for=3, grace_s=600, join_s=3000, deadline_s=20)
AGENTS = 3


def fleet_of(folder: Path, chance: random.Random, **evil: float) -> AdverseFleet:
    fleet = AdverseFleet(PLAN, folder=folder, adversary=Adversary(chance, **evil))
    fleet.broker.fault = fleet.adversary
    for number in range(AGENTS):
        fleet.real(f"pi{number}", number)
    fleet.begin()
    return fleet


def drive(fleet: AdverseFleet, trouble: float = 0.0) -> None:
    """To the end; in a step, with the chance of `trouble`, somebody is killed or cut off."""
    chance = fleet.adversary.chance
    away: list = []
    for _ in range(60_000):
        if fleet.campaign.finished:
            return
        fleet.step()
        assert_no_stale_state(fleet)
        for agent in list(away):
            if chance.random() < 0.05:
                away.remove(agent)
                agent.restore()
        if chance.random() >= trouble:
            continue
        victim = chance.choice((*fleet.agents, None))
        if victim is None:
            fleet.vanish()
            fleet.begin(resume=True)
        elif victim in away:
            continue
        elif chance.random() < 0.5:
            victim.restart()
        else:
            victim.cut()
            away.append(victim)
    raise AssertionError(f"not finished: {list(fleet.campaign.log)[-5:]}")


def assert_no_stale_state(fleet: AdverseFleet) -> None:
    """A process that was replaced and has been heard of since decides nothing any more."""
    for agent in fleet.agents:
        entry = fleet.campaign.registry.agents.get(agent.name)
        if entry is None or entry.session < 0:
            continue
        seen = fleet.newest_heard.get(agent.name, -1)
        assert entry.session >= seen, f"{agent.name} went back from session {seen} to {entry.session}"
        fleet.newest_heard[agent.name] = entry.session


def assert_counted_once(fleet: AdverseFleet) -> None:
    stored: list[OutcomeRecord] = fleet.store.outcomes("run-1")
    by_key = {record.key: record.outcome for record in stored}
    assert len(by_key) == len(stored)
    measured = {}
    for agent in fleet.agents:
        for key, (update, acknowledged) in agent.measured().items():
            outcome = update.measurement if isinstance(update, Result) else update
            measured[key] = outcome
            assert not acknowledged or by_key.get(key) == outcome
    for key, outcome in by_key.items():
        assert not isinstance(outcome, Measurement) or measured[key] == outcome
    counted = Counter(event.task_id for event in fleet.events if isinstance(event, MeasurementTaken))
    assert set(counted.values()) == {1}


def targets_met(fleet: AdverseFleet) -> list[bool]:
    return [
        state.status == "met"
        for setting_run in fleet.campaign.setting_runs.values()
        for state in setting_run.search.targets
    ]


@pytest.mark.parametrize("seed", range(12))
def test_lost_doubled_delayed_and_reordered_messages(tmp_path: Path, seed: int) -> None:
    fleet = fleet_of(tmp_path, random.Random(seed), drops=0.05, doubles=0.15, delays=0.3)
    drive(fleet)
    assert fleet.campaign.finish() == "complete"
    assert targets_met(fleet) == [True] * 3 * AGENTS
    assert_counted_once(fleet)


@pytest.mark.parametrize("seed", range(12))
def test_kills_and_cuts_beside_them(tmp_path: Path, seed: int) -> None:
    fleet = fleet_of(tmp_path, random.Random(100 + seed), drops=0.03, doubles=0.1, delays=0.2)
    drive(fleet, trouble=0.03)
    assert fleet.campaign.finish() == "complete"
    assert targets_met(fleet) == [True] * 3 * AGENTS
    assert_counted_once(fleet)


@pytest.mark.parametrize("seed", range(4))
def test_a_broker_that_loses_one_message_in_five(tmp_path: Path, seed: int) -> None:
    fleet = fleet_of(tmp_path, random.Random(200 + seed), drops=0.2)
    drive(fleet)
    # A subnet of which every word was lost three times counts as failed; the search goes on without it.
    assert all(setting_run.status == "finished" for setting_run in fleet.campaign.setting_runs.values())
    assert_counted_once(fleet)


def test_a_will_of_a_replaced_process_that_comes_late_changes_nothing(tmp_path: Path) -> None:
    fleet = fleet_of(tmp_path, random.Random(0))
    agent = fleet.agents[0]
    while not fleet.campaign.setting_runs:
        fleet.step()
    old = agent.transport.will
    agent.restart()
    for _ in range(20):
        fleet.step()
    assert fleet.campaign.registry.agents[agent.name].usable
    assert old is not None
    fleet.broker.publish(old.topic, old.payload, retain=True)
    while (event := fleet.transport.poll(0)) is not None:  # before the agent can contradict
        fleet.campaign.on_event(event)
    entry = fleet.campaign.registry.agents[agent.name]
    assert entry.usable
    assert entry.session == agent.sessions[-1]


def test_a_coordinator_killed_right_after_its_first_task_went_out(tmp_path: Path) -> None:
    fleet = fleet_of(tmp_path, random.Random(0))
    while not fleet.store.tasks("run-1"):
        fleet.step(0.01)
    fleet.vanish()
    fleet.begin(resume=True)
    drive(fleet)
    assert fleet.campaign.finish() == "complete"
    assert_counted_once(fleet)
