"""Agents that give every task back, in every way there is, cost their own settings; nobody counts without end."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
from rigs.simulated_fleet import TOPICS, SimulatedAgent, Simulation

from fleetnas.coordinator.campaign.losses import MAX_RETURNED
from fleetnas.coordinator.campaign.setting_run import SettingRun
from fleetnas.coordinator.fleet.work_queue import MOST_ATTEMPTS
from fleetnas.coordinator.records.plan import CampaignPlan
from fleetnas.fleet_protocol.codec import encode
from fleetnas.fleet_protocol.messages import MAX_ATTEMPTS, AgentState, Inventory, Rejected, Result
from fleetnas.fleet_protocol.orders import MeasureTask
from fleetnas.fleet_protocol.transports.base import Received

PLAN = CampaignPlan(targets="auto:2", budget=10, initial_design=6, wait_for=2, grace_s=30, join_s=60, deadline_s=60)


class Undoing(SimulatedAgent):
    """Gives tasks back instead of doing them."""

    how = "inventory"

    def _work(self, task: MeasureTask) -> None:
        if self.does(task):
            super()._work(task)
        elif self.how == "inventory":
            self._say("inventory", Inventory(session=self.session))
        elif self.how == "restarts":
            for state in ("lost", "ready"):
                told = AgentState.model_validate({"state": state, "session": self.session, "instance": self.instance})
                self._say("state", told, retain=True)
        else:
            self._say("task", Rejected.model_validate({"task": task.task, "reason": self.how}))

    def does(self, task: MeasureTask) -> bool:
        return False


def with_an_undoing_agent(kind: type[Undoing] = Undoing, **fields: Any) -> Simulation:
    fleet = Simulation(PLAN)
    fleet.add("honest", seed=0)
    agent = fleet.take_in(kind(fleet.broker, "undoing", fleet.clock, seed=1, seconds_per_task=0.5))
    for name, value in fields.items():
        setattr(agent, name, value)
    fleet.begin()
    return fleet


def track_of(fleet: Simulation, device: str) -> SettingRun:
    return next(setting_run for setting_run in fleet.campaign.setting_runs.values() if setting_run.device == device)


def most_attempts(fleet: Simulation) -> int:
    return max((task.attempt for task in fleet.store.tasks("run-1")), default=0)


@pytest.mark.parametrize("how", ["inventory", "busy", "restarts"])
def test_a_setting_whose_tasks_all_come_back_is_given_up(how: str) -> None:
    fleet = with_an_undoing_agent(how=how)
    fleet.run(most_steps=4000)
    assert fleet.campaign.finish() == "partial"
    undoing, honest = track_of(fleet, "undoing"), track_of(fleet, "honest")
    assert (honest.status, undoing.status) == ("finished", "failed")
    assert f"{MAX_RETURNED} tasks in a row" in undoing.reason
    assert most_attempts(fleet) <= MAX_RETURNED + 2
    fleet.begin(resume=True)
    fleet.run(most_steps=4000)
    assert track_of(fleet, "honest").status == "finished"
    assert track_of(fleet, "undoing").status == "failed"


def test_one_task_that_always_comes_back_counts_as_failed() -> None:
    class Selective(Undoing):
        """Never does the first task that it was given, and any other only after that one came back often."""

        first: str | None = None
        refusals = 0

        def does(self, task: MeasureTask) -> bool:
            self.first = self.first or task.task.task_id
            self.refusals += task.task.task_id == self.first
            return task.task.task_id != self.first

    fleet = with_an_undoing_agent(Selective)
    # Each honest result makes patience anew: the attempts at the one task are what ends it.
    setting_run = track_of_when_joined(fleet)
    while not fleet.campaign.finished and most_attempts(fleet) < MOST_ATTEMPTS:
        fleet.step()
        setting_run.queue.count_outcome()
    fleet.run(most_steps=4000)
    assert fleet.campaign.finish() == "complete"
    failed = [found for found in fleet.store.outcomes("run-1") if not hasattr(found.outcome, "median_ms")]
    assert [found.outcome.detail for found in failed] == [f"{MOST_ATTEMPTS} attempts brought no result"]  # type: ignore[union-attr]
    assert most_attempts(fleet) == MOST_ATTEMPTS


def track_of_when_joined(fleet: Simulation) -> SettingRun:
    fleet.run(until=lambda: len(fleet.campaign.setting_runs) == 2)
    return track_of(fleet, "undoing")


def test_a_stored_task_at_the_limit_of_attempts_is_resumed() -> None:
    fleet = with_an_undoing_agent()
    fleet.run(until=lambda: bool(fleet.store.tasks("run-1")))
    fleet.run(until=lambda: len(fleet.store.outcomes("run-1")) >= 2)
    fleet.vanish()
    for task in fleet.store.tasks("run-1"):
        if task.device == "undoing":
            fleet.store.put_tasks([replace(task, attempt=MAX_ATTEMPTS)])
    fleet.begin(resume=True)
    fleet.run(most_steps=4000)
    assert track_of(fleet, "honest").status == "finished"
    assert fleet.campaign.finish() == "partial"


def test_what_is_given_back_now_and_then_does_no_harm() -> None:
    class Flaky(Undoing):
        asked = 0

        def does(self, task: MeasureTask) -> bool:
            self.asked += 1
            return self.asked % 4 == 0

    fleet = with_an_undoing_agent(Flaky)
    fleet.run(most_steps=4000)
    assert fleet.campaign.finish() == "complete"


def test_a_busy_agent_is_left_alone_for_longer_and_longer() -> None:
    class Busy(Undoing):
        how = "busy"

        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self.asked_s: list[float] = []

        def _hear(self, message: Received) -> None:
            if message.topic == TOPICS.down(self.name, "task"):
                self.asked_s.append(self.clock.now_s)
            super()._hear(message)

    fleet = with_an_undoing_agent(Busy)
    (busy,) = [agent for agent in fleet.agents if isinstance(agent, Busy)]
    fleet.run(most_steps=4000)
    gaps = [later - earlier for earlier, later in itertools.pairwise(busy.asked_s) if later > earlier]
    assert gaps[0] < 20
    assert 55 < gaps[-1] <= 65


def test_a_refused_result_is_acknowledged_and_counts_as_a_failure() -> None:
    class Lying(SimulatedAgent):
        def _work(self, task: MeasureTask) -> None:
            honest = Result(task=task.task, measurement=self._measure(task))
            payload = encode(honest).replace(b'"half_width_percent":0.8', b'"half_width_percent":1e200', 1)
            self.outbox[task.task] = payload
            self.transport.publish(TOPICS.up(self.name, "task"), payload)

    fleet = Simulation(PLAN)
    fleet.add("honest", seed=0)
    liar = fleet.take_in(Lying(fleet.broker, "liar", fleet.clock, seed=1))
    fleet.begin()
    began_s = fleet.clock.now_s
    fleet.run()
    assert fleet.campaign.finish() == "partial"
    assert track_of(fleet, "honest").status == "finished"
    found = track_of(fleet, "liar")
    assert found.status == "failed"
    assert "half_width_percent" in found.reason
    assert liar.outbox == {}, "nothing is repeated for ever"
    assert fleet.clock.now_s - began_s < 300, "no lease had to end"
