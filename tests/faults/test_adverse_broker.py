"""Messages lost, doubled, delayed and out of order, processes killed and connections cut, over many seeds."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from rigs.adverse_fleet import AGENTS, assert_counted_once, drive, fleet_of, targets_met


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
