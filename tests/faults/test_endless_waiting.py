"""A device that speaks of its tasks and never ends one: the campaign ends all the same, and the others lose nothing."""

from __future__ import annotations

from typing import Any

import pytest
from rigs.simulated_fleet import SimulatedAgent, Simulation

from fleetnas.coordinator.campaign.losses import MAX_UNANSWERED
from fleetnas.coordinator.fleet.task_dispatcher import MAX_HELD_S
from fleetnas.coordinator.records.plan import CampaignPlan
from fleetnas.fleet_protocol.messages import Phase, Progress

PLAN = CampaignPlan(targets="auto:3", budget=16, initial_design=6, wait_for=2, grace_s=30, join_s=60, deadline_s=60)
STEP_S = 30.0


class TalkingAgent(SimulatedAgent):
    """Takes tasks, and says about them what it is told to."""

    phase: Phase | None = "waiting"
    told_s = 0.0

    def step(self) -> None:
        self.mute = self.phase is not None
        held = list(self.queue)
        super().step()
        if self.phase is not None:
            self.queue.extend(task for task in held if task not in self.queue)
        for task in self.queue:
            if self.phase is not None:
                self._say("task", Progress(task=task.task, phase=self.phase, fraction=0.5))


def fleet(**options: Any) -> tuple[Simulation, TalkingAgent]:
    simulation = Simulation(PLAN)
    simulation.add("honest", seed=1)
    talking = simulation.take_in(TalkingAgent(simulation.broker, "talking", simulation.clock, seed=2, **options))
    simulation.begin()
    return simulation, talking


def ends(simulation: Simulation, within_s: float) -> bool:
    began_s = simulation.clock.now_s
    while not simulation.campaign.finished and simulation.clock.now_s - began_s < within_s:
        simulation.step(STEP_S)
    return simulation.campaign.finished


@pytest.mark.parametrize("phase", ["waiting", "measuring"])
def test_an_agent_that_only_talks_keeps_no_campaign_for_ever(phase: Phase) -> None:
    simulation, talking = fleet()
    talking.phase = phase
    assert ends(simulation, (MAX_UNANSWERED + 1) * (MAX_HELD_S + 4 * PLAN.deadline_s))
    found = {setting_run.device: setting_run.status for setting_run in simulation.campaign.setting_runs.values()}
    assert found == {"honest": "finished", "talking": "lost"}
    honest = next(
        setting_run for setting_run in simulation.campaign.setting_runs.values() if setting_run.device == "honest"
    )
    assert [state.status for state in honest.search.targets] == ["met"] * 3
    assert any("no result came for task" in line for line in simulation.campaign.log)


def test_an_agent_that_waits_for_less_is_waited_for() -> None:
    simulation, talking = fleet()
    began_s = simulation.clock.now_s
    while simulation.clock.now_s - began_s < MAX_HELD_S - PLAN.deadline_s:
        simulation.step(STEP_S)
    assert not any("dispatched again" in line for line in simulation.campaign.log)
    talking.phase = None
    assert ends(simulation, MAX_HELD_S)
    assert {setting_run.status for setting_run in simulation.campaign.setting_runs.values()} == {"finished"}
