"""The campaign over a simulated fleet: the very code of a real one, without network, devices or waiting."""

from __future__ import annotations

import json
import random
from collections import Counter
from typing import ClassVar

import pytest
from rigs.simulated_fleet import SPACE, TOPICS, SimulatedAgent, Simulation, measurement

from fleetnas.coordinator.campaign.setting_run import SettingRun
from fleetnas.coordinator.records import events
from fleetnas.coordinator.records.bounds import Bounds, subnet_costs
from fleetnas.coordinator.records.plan import CampaignPlan, RunSettings
from fleetnas.coordinator.report.stored_outcome import outcome_of
from fleetnas.fleet_protocol.codec import encode
from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.fleet_protocol.messages import (
    AgentState,
    Failed,
    Measurement,
    MeasurementProtocol,
    Result,
    RuntimeSetting,
    TaskKey,
)
from fleetnas.fleet_protocol.orders import MeasureTask
from fleetnas.fleet_protocol.transports.memory import Delivery

PLAN = CampaignPlan(targets="auto:4", budget=20, initial_design=8, wait_for=3, grace_s=30, join_s=60, deadline_s=60)


def plan(**changes: object) -> CampaignPlan:
    return CampaignPlan.model_validate({**PLAN.model_dump(), **changes})


@pytest.fixture
def fleet() -> Simulation:
    simulation = Simulation(PLAN)
    for seed in range(3):
        simulation.add(f"pi{seed}", seed=seed)
    return simulation


def setting_run(fleet: Simulation, name: str) -> SettingRun:
    if not fleet.campaign.setting_runs:
        fleet.run(until=lambda: bool(fleet.campaign.setting_runs))
    return next(setting_run for setting_run in fleet.campaign.setting_runs.values() if setting_run.device == name)


def met(setting_run: SettingRun) -> list[bool]:
    return [state.status == "met" for state in setting_run.search.targets]


def outcomes_per_attempt(fleet: Simulation) -> Counter[tuple[str, int]]:
    return Counter((found.key.task_id, found.key.attempt) for found in fleet.store.outcomes("run-1"))


class TestUndisturbed:
    def test_every_target_of_every_device_is_met_by_a_fresh_measurement(self, fleet: Simulation) -> None:
        fleet.begin()
        fleet.run()
        assert fleet.campaign.finish() == "complete"
        assert fleet.store.run("run-1").status == "complete"
        for track_ in fleet.campaign.setting_runs.values():
            assert met(track_) == [True] * 4
            assert track_.search.measurements <= PLAN.budget
        # What is called met stands in the store as a measurement of the very file that ships.
        verified = {
            (found.task.device, found.task.target_ms): found.outcome
            for found in fleet.store.outcomes("run-1")
            if found.task.purpose == "verification" and isinstance(found.outcome, Measurement)
        }
        for winner in fleet.store.winners("run-1"):
            outcome = verified[winner.device, winner.target_ms]
            assert winner.met
            assert outcome.median_ms == winner.verified_ms <= winner.target_ms
            assert outcome.model_sha256 == winner.sha256
        assert not fleet.refused

    def test_where_rounds_are_planned_changes_nothing(self) -> None:
        runs = []
        for at_once in (False, True):
            simulation = Simulation(plan(wait_for=1), at_once=at_once)
            simulation.add("pi0")
            simulation.begin()
            simulation.run()
            assert simulation.campaign.finish() == "complete"
            found = simulation.store.outcomes("run-1")
            assert all(isinstance(one.outcome, Measurement) for one in found)
            runs.append([(one.task.architecture, one.task.purpose, one.outcome.median_ms) for one in found])
        assert runs[0] == runs[1]

    def test_the_same_fleet_and_seed_give_the_same_measurements(self) -> None:
        runs = []
        for _ in range(2):
            simulation = Simulation(plan(wait_for=1))
            simulation.add("pi0")
            simulation.begin()
            simulation.run()
            runs.append([(found.task.architecture, found.outcome) for found in simulation.store.outcomes("run-1")])
        assert runs[0] == runs[1]

    def test_a_device_with_two_settings_is_searched_in_both(self) -> None:
        fleet = Simulation(plan(wait_for=1))
        fleet.add("pi0", settings=(RuntimeSetting(), RuntimeSetting(threads=4)))
        fleet.begin()
        fleet.run()
        assert [met(track_) for track_ in fleet.campaign.setting_runs.values()] == [[True] * 4] * 2

    def test_tasks_cost_little_on_the_wire(self, fleet: Simulation) -> None:
        fleet.begin()
        fleet.run()
        for track_ in fleet.campaign.setting_runs.values():
            assert track_.wire_bytes / len(fleet.store.outcomes("run-1")) * 3 < 2048

    def test_an_agent_always_has_its_next_task_while_a_round_lasts(self, fleet: Simulation) -> None:
        fleet.begin()
        fleet.run(until=lambda: bool(setting_run(fleet, "pi0").leased))
        in_hand = []
        while setting_run(fleet, "pi0").ready:
            in_hand.append(len(setting_run(fleet, "pi0").leased))
            fleet.step()
        assert len(in_hand) >= PLAN.initial_design - 2
        assert set(in_hand) == {2}


class TestDeviceLost:
    def test_the_others_finish_and_the_lost_one_is_reported(self, fleet: Simulation) -> None:
        fleet.begin()
        fleet.run(until=lambda: setting_run(fleet, "pi1").search.measurements >= 4)
        fleet.agents[1].transport.events.clear()
        fleet.agents.pop(1)
        fleet.broker.cut("pi1")
        fleet.run()
        assert fleet.campaign.finish() == "partial"
        assert [setting_run(fleet, f"pi{i}").status for i in range(3)] == ["finished", "lost", "finished"]
        assert met(setting_run(fleet, "pi0")) == met(setting_run(fleet, "pi2")) == [True] * 4
        assert "last will" in setting_run(fleet, "pi1").reason
        finished = fleet.events[-1]
        assert isinstance(finished, events.CampaignFinished)
        assert finished.devices_lost == ("pi1/onnxruntime_cpu_1t_fp32",)

    def test_one_that_comes_back_in_time_goes_on(self, fleet: Simulation) -> None:
        fleet.begin()
        fleet.run(until=lambda: setting_run(fleet, "pi1").search.measurements >= 4)
        fleet.broker.cut("pi1")
        for _ in range(10):
            fleet.step()
        fleet.broker.attach(fleet.agents[1].transport)
        fleet.run()
        assert fleet.campaign.finish() == "complete"
        assert set(outcomes_per_attempt(fleet).values()) == {1}

    def test_the_will_of_the_process_before_is_ignored(self, fleet: Simulation) -> None:
        fleet.begin()
        fleet.run(until=lambda: setting_run(fleet, "pi1").search.measurements >= 4)
        stale = AgentState(state="lost", session=0, instance="pi1-0")
        fleet.broker.publish(TOPICS.up("pi1", "state"), encode(stale), retain=True)
        fleet.step()
        assert fleet.campaign.registry.agents["pi1"].usable

    def test_one_that_falls_silent_without_a_will_is_lost_too(self, fleet: Simulation) -> None:
        fleet.begin()
        fleet.run(until=lambda: setting_run(fleet, "pi1").search.measurements >= 4)
        fleet.agents[1].step = lambda: None  # type: ignore[method-assign]
        fleet.run()
        assert setting_run(fleet, "pi1").status == "lost"
        assert "sign of life" in setting_run(fleet, "pi1").reason

    def test_one_that_takes_tasks_and_never_answers_is_lost(self, fleet: Simulation) -> None:
        fleet.begin()
        fleet.run(until=lambda: setting_run(fleet, "pi1").search.measurements >= 4)
        fleet.agents[1].mute = True
        # It still says that it lives.
        alive = AgentState(state="ready", session=1, instance="pi1-1")
        for _ in range(600):
            fleet.broker.publish(TOPICS.up("pi1", "state"), encode(alive))
            fleet.step()
            if fleet.campaign.finished:
                break
        assert [setting_run(fleet, f"pi{i}").status for i in range(3)] == ["finished", "lost", "finished"]
        assert "no answer" in setting_run(fleet, "pi1").reason


class TestFaults:
    @pytest.mark.parametrize("seed", range(4))
    def test_lost_doubled_and_late_messages_cost_time_and_nothing_else(self, seed: int) -> None:
        chance = random.Random(seed)
        late: list[Delivery] = []

        def fault(delivery: Delivery) -> list[Delivery]:
            dice = chance.random()
            if dice < 0.1 and "/state" not in delivery.message.topic and "/info" not in delivery.message.topic:
                return []
            if dice < 0.2:
                return [delivery, delivery]
            if dice < 0.3:
                late.append(delivery)
                return []
            released, late[:] = list(late), []
            return [*released, delivery]

        fleet = Simulation(plan(wait_for=2, deadline_s=10, grace_s=120))
        for index in range(2):
            fleet.add(f"pi{index}", seed=index)
        fleet.begin()
        fleet.run(until=lambda: fleet.campaign.phase == "searching")
        fleet.broker.fault = fault
        fleet.run(most_steps=5000)
        assert fleet.campaign.finish() == "complete"
        assert set(outcomes_per_attempt(fleet).values()) == {1}

    def test_a_repeated_result_is_acknowledged_and_counts_once(self, fleet: Simulation) -> None:
        fleet.begin()
        fleet.run(until=lambda: setting_run(fleet, "pi0").search.measurements >= 3)
        agent = fleet.agents[0]
        key, payload = next(iter(agent.answered.items()))
        before = setting_run(fleet, "pi0").search.measurements
        agent.outbox[key] = payload
        for _ in range(3):
            fleet.broker.publish(TOPICS.up("pi0", "task"), payload)
        while (event := fleet.transport.poll(0)) is not None:
            fleet.campaign.on_event(event)
        fleet.campaign.on_tick()
        assert setting_run(fleet, "pi0").search.measurements == before
        agent.step()
        assert key not in agent.outbox

    def test_failed_subnets_are_left_alone_and_the_search_goes_on(self, fleet: Simulation) -> None:
        bad = set()

        def fails(task: MeasureTask) -> str | None:
            if len(bad) < 3:
                bad.add(task.architecture)
            return "crashed" if task.architecture in bad else None

        fleet.agents[0].fails = fails
        fleet.begin()
        fleet.run()
        assert met(setting_run(fleet, "pi0")) == [True] * 4
        tries = Counter(architecture for _, architecture, _ in fleet.agents[0].measured if architecture in bad)
        assert set(tries.values()) == {2}
        failures = [found for found in fleet.store.outcomes("run-1") if isinstance(found.outcome, Failed)]
        assert len(failures) == 6

    def test_a_device_on_which_everything_fails_is_given_up_with_its_reason(self, fleet: Simulation) -> None:
        fleet.agents[2].fails = lambda _: "out_of_memory"
        fleet.begin()
        fleet.run()
        assert fleet.campaign.finish() == "partial"
        assert setting_run(fleet, "pi2").status == "failed"
        assert "out_of_memory" in setting_run(fleet, "pi2").reason
        assert "doctor" in setting_run(fleet, "pi2").reason

    def test_a_winner_measured_from_another_file_is_refused(self, fleet: Simulation) -> None:
        agent = fleet.agents[0]
        honest = agent.devices[RuntimeSetting()].measure

        def altered(task: MeasureTask, finished: float) -> Measurement:
            found = honest(task, finished)
            return found.model_copy(update={"model_sha256": "e" * 64}) if task.calibration else found

        agent.devices[RuntimeSetting()].measure = altered  # type: ignore[method-assign]
        fleet.begin()
        fleet.run()
        assert met(setting_run(fleet, "pi0")) == [False] * 4
        refused = [
            found.outcome
            for found in fleet.store.outcomes("run-1")
            if found.task.purpose == "verification" and found.task.device == "pi0"
        ]
        assert refused
        assert all(isinstance(outcome, Failed) and "e" * 64 in outcome.detail for outcome in refused)

    def test_slowed_measurements_are_kept_but_teach_nothing(self, fleet: Simulation) -> None:
        agent = fleet.agents[0]
        honest = agent.devices[RuntimeSetting()].measure
        hot: list[object] = []

        def slowed(task: MeasureTask, finished: float) -> Measurement:
            found = honest(task, finished)
            if len(hot) < 4 and not task.calibration:
                hot.append(task)
                return measurement(found.median_ms * 5, quality="slowed", undisturbed_ms=None)
            return found

        agent.devices[RuntimeSetting()].measure = slowed  # type: ignore[method-assign]
        fleet.begin()
        fleet.run()
        assert met(setting_run(fleet, "pi0")) == [True] * 4
        error = setting_run(fleet, "pi0").search.held_out_error().mape_percent
        assert error is not None
        assert error < 15
        stored = [f.outcome.quality for f in fleet.store.outcomes("run-1") if isinstance(f.outcome, Measurement)]
        assert stored.count("slowed") == 4


class TestHostile:
    def test_results_that_an_agent_was_not_asked_for_change_nothing(self, fleet: Simulation) -> None:
        fleet.begin()
        fleet.run(until=lambda: bool(setting_run(fleet, "pi0").leased))
        task_id = next(iter(setting_run(fleet, "pi0").leased))
        lies = [
            ("pi1", Result(task=TaskKey(task_id=task_id, attempt=1), measurement=measurement(0.001))),
            ("pi0", Result(task=TaskKey(task_id=task_id, attempt=7), measurement=measurement(0.001))),
            ("pi0", Result(task=TaskKey(task_id="run-9.1", attempt=1), measurement=measurement(0.001))),
        ]
        for agent, lie in lies:
            fleet.broker.publish(TOPICS.up(agent, "task"), encode(lie))
        fleet.broker.publish(TOPICS.up("pi0", "task"), b"\x00garbage")
        fleet.broker.publish(TOPICS.up("pi0", "info"), b"{}")
        while (event := fleet.transport.poll(0)) is not None:
            fleet.campaign.on_event(event)
        assert len(fleet.refused) == 4  # run 9 may be of another coordinator: that is told when the result is repeated
        assert fleet.store.outcomes("run-1") == []
        fleet.run()
        assert fleet.campaign.finish() == "complete"

    def test_two_agents_of_one_name_that_both_stay_are_not_used(self, fleet: Simulation) -> None:
        fleet.begin()
        fleet.run(until=lambda: setting_run(fleet, "pi0").search.measurements >= 2)
        for turn in range(8):
            rival = AgentState(state="ready", session=5 + turn % 2, instance=f"rival-{turn % 2}")
            fleet.broker.publish(TOPICS.up("pi0", "state"), encode(rival))
        fleet.run()
        assert setting_run(fleet, "pi0").status == "failed"
        assert "two agents" in setting_run(fleet, "pi0").reason
        assert "--name" in setting_run(fleet, "pi0").reason
        assert met(setting_run(fleet, "pi1")) == [True] * 4


class TestTargets:
    def test_an_infeasible_target_is_named_and_the_others_are_met(self) -> None:
        fleet = Simulation(plan(targets="0.01,2", wait_for=1))
        fleet.add("pi0")
        fleet.begin()
        fleet.run()
        assert fleet.campaign.finish() == "partial"
        infeasible, feasible = setting_run(fleet, "pi0").search.targets
        assert (infeasible.status, feasible.status) == ("infeasible", "met")
        assert setting_run(fleet, "pi0").search.fastest_ms is not None
        assert f"{setting_run(fleet, 'pi0').search.fastest_ms:.3g} ms" in infeasible.reason
        assert any(isinstance(event, events.TargetInfeasible) for event in fleet.events)


class TestGathering:
    def test_devices_that_do_not_come_are_named(self) -> None:
        fleet = Simulation(plan(devices=("pi0", "jetson"), wait_for=1))
        fleet.add("pi0")
        fleet.begin()
        with pytest.raises(UsageError, match=r"jetson did not appear after 60 s.*--devices"):
            fleet.run()

    def test_without_any_agent_the_message_says_how_to_start_one(self) -> None:
        fleet = Simulation(plan(wait_for=2))
        fleet.add("pi0")
        fleet.begin()
        with pytest.raises(UsageError, match=r"1 of 2 agents.*fleetnas-agent run"):
            fleet.run()

    def test_only_the_devices_asked_for_take_part(self, fleet: Simulation) -> None:
        fleet.plan = plan(devices=("pi2",), wait_for=1)
        fleet.begin()
        fleet.run()
        assert [track_.device for track_ in fleet.campaign.setting_runs.values()] == ["pi2"]
        assert not fleet.agents[0].measured

    def test_one_that_comes_later_joins(self) -> None:
        fleet = Simulation(plan(wait_for=1))
        fleet.add("pi0")
        fleet.begin()
        fleet.run(until=lambda: setting_run(fleet, "pi0").search.measurements >= 5)
        fleet.add("late", seed=9)
        fleet.run()
        assert met(setting_run(fleet, "late")) == [True] * 4


class TestBounds:
    BOUNDS: ClassVar[dict[str, float]] = {"parameters": 450e3, "macs": 6e6, "peak_activation_bytes": 150e3}

    @staticmethod
    def costs(fleet: Simulation) -> dict[str, float]:
        """The largest of each cost among all that was measured."""
        measured = [found.task.architecture for found in fleet.store.outcomes("run-1")]
        return {name: float(cost.max()) for name, cost in subnet_costs(SPACE, SPACE.encode(measured)).items()}

    def test_nothing_that_breaks_a_bound_is_measured_and_winners_say_what_they_cost(self, fleet: Simulation) -> None:
        fleet.begin()
        fleet.run()
        fleet.campaign.finish()
        free = outcome_of(fleet.store, "run-1")
        assert all(self.costs(fleet)[name] > bound for name, bound in self.BOUNDS.items())
        targets = [target.target_ms for target in free.devices[0].targets]
        bounded = Simulation(plan(bounds=self.BOUNDS, wait_for=1, targets=",".join(map(str, targets))))
        bounded.add("pi0", seed=0)
        bounded.begin()
        bounded.run()
        assert bounded.campaign.finish() == "complete"
        assert all(self.costs(bounded)[name] <= bound for name, bound in self.BOUNDS.items())
        outcome = outcome_of(bounded.store, "run-1")
        assert outcome.bounds == Bounds(**self.BOUNDS)
        for target in outcome.devices[0].targets:
            assert target.architecture is not None
            (costs,) = zip(*subnet_costs(SPACE, SPACE.encode([target.architecture])).values(), strict=True)
            assert [target.parameters, target.macs, target.peak_activation_bytes] == list(costs[:3])
        # Where the target leaves room for a larger network, the bounds decide, and are made use of.
        slowest, without = outcome.devices[0].targets[-1], free.devices[0].targets[-1]
        assert slowest.predicted_accuracy < without.predicted_accuracy  # type: ignore[operator]
        assert max(slowest.parameters / 450e3, slowest.macs / 6e6, slowest.peak_activation_bytes / 150e3) > 0.9  # type: ignore[operator]

    def test_automatic_targets_are_spread_over_what_the_bounds_leave(self) -> None:
        highest = []
        for bounds in ({}, {"macs": 3e6}):
            fleet = Simulation(plan(bounds=bounds, wait_for=1))
            fleet.add("pi0")
            fleet.begin()
            fleet.run()
            assert fleet.campaign.finish() == "complete"
            highest.append(setting_run(fleet, "pi0").search.targets[-1].target_ms)
        assert highest[1] < 0.8 * highest[0]

    def test_the_tightest_bounds_that_can_be_kept_leave_the_smallest_subnet(self) -> None:
        smallest = SPACE.smallest()
        least = float(SPACE.macs(smallest)[0])
        fleet = Simulation(plan(bounds={"macs": least}, wait_for=1, targets="1000"))
        fleet.add("pi0")
        fleet.begin()
        fleet.run()
        assert fleet.campaign.finish() == "complete"
        assert {found.task.architecture for found in fleet.store.outcomes("run-1")} == set(SPACE.decode(smallest))

    def test_a_resumed_run_keeps_them(self) -> None:
        fleet = Simulation(plan(bounds=self.BOUNDS, wait_for=1))
        fleet.add("pi0")
        fleet.begin()
        fleet.run(until=lambda: len(fleet.store.outcomes("run-1")) >= 4)
        fleet.vanish()
        # The plan as the store has it, which is all that a coordinator that is started again knows.
        fleet.plan = RunSettings.model_validate_json(json.dumps(fleet.store.run("run-1").settings)).plan
        assert fleet.plan.bounds == Bounds(**self.BOUNDS)
        fleet.begin(resume=True)
        fleet.run()
        assert fleet.campaign.finish() == "complete"
        assert all(self.costs(fleet)[name] <= bound for name, bound in self.BOUNDS.items())


def measured_and_won(fleet: Simulation) -> tuple[set[object], list[object]]:
    """Every subnet that was measured, why, and each target's winner."""
    outcomes = fleet.store.outcomes("run-1")
    return {(found.task.purpose, found.task.target_ms, found.task.architecture) for found in outcomes}, [
        (winner.target_ms, winner.architecture, winner.verified_ms) for winner in fleet.store.winners("run-1")
    ]


class TestResume:
    def test_coordinators_that_are_killed_repeatedly_measure_what_one_would_measure(self) -> None:
        ended = []
        for chance_of_vanishing in (0.0, 0.3):
            fleet, chance = Simulation(plan(wait_for=1)), random.Random(5)
            fleet.add("pi0", noise=0.0)
            fleet.begin()
            while not fleet.campaign.finished:
                fleet.step()
                if chance.random() < chance_of_vanishing:
                    fleet.vanish()
                    fleet.begin(resume=True)
            assert fleet.campaign.finish() == "complete"
            assert fleet.starts == 1 or fleet.starts > 10
            ended.append(measured_and_won(fleet))
        assert ended[0] == ended[1]

    @pytest.mark.parametrize("after", [1, 6, 12, 20, 23])
    def test_nothing_stored_is_measured_again(self, after: int) -> None:
        fleet = Simulation(plan(wait_for=1))
        agent = fleet.add("pi0", noise=0.0)
        fleet.begin()
        fleet.run(until=lambda: len(fleet.store.outcomes("run-1")) >= after)
        stored = {
            (found.task.purpose == "verification", found.task.architecture) for found in fleet.store.outcomes("run-1")
        }
        fleet.vanish()
        for _ in range(5):
            agent.step()
            fleet.clock.now_s += 1
        in_the_outbox = {(bool(calibrated), architecture) for _, architecture, calibrated in agent.measured}
        agent.measured.clear()
        fleet.begin(resume=True)
        fleet.run()
        again = {(calibrated, architecture) for _, architecture, calibrated in agent.measured}
        assert not again & stored
        assert not again & in_the_outbox
        assert fleet.campaign.finish() == "complete"
        assert set(outcomes_per_attempt(fleet).values()) == {1}
        assert not agent.outbox

    def test_a_finished_run_is_resumed_without_any_measurement(self, fleet: Simulation) -> None:
        fleet.begin()
        fleet.run()
        fleet.campaign.finish()
        first = fleet.store.winners("run-1")
        fleet.vanish()
        for agent in fleet.agents:
            agent.measured.clear()
        fleet.begin(resume=True)
        fleet.run()
        assert fleet.campaign.finish() == "complete"
        assert [agent.measured for agent in fleet.agents] == [[], [], []]
        assert fleet.store.winners("run-1") == first

    def test_a_lost_device_that_is_back_is_finished_by_resuming(self, fleet: Simulation) -> None:
        fleet.begin()
        fleet.run(until=lambda: setting_run(fleet, "pi1").search.measurements >= 4)
        lost = fleet.agents.pop(1)
        fleet.broker.cut("pi1")
        fleet.run()
        assert fleet.campaign.finish() == "partial"
        fleet.vanish()
        fleet.agents.append(SimulatedAgent(fleet.broker, "pi1", fleet.clock, seed=1, session=2))
        fleet.agents[-1].start()
        fleet.begin(resume=True)
        fleet.run()
        assert fleet.campaign.finish() == "complete"
        seen = {architecture for _, architecture, calibrated in lost.measured if not calibrated}
        held = {key.task_id for key in lost.outbox}
        stored_before = {
            found.task.architecture for found in fleet.store.outcomes("run-1") if found.key.task_id not in held
        }
        again = {architecture for _, architecture, calibrated in fleet.agents[-1].measured if not calibrated}
        assert not again & seen & stored_before - again


def test_the_protocol_of_the_plan_reaches_the_devices() -> None:
    protocol = MeasurementProtocol(min_runs=7, max_s=3)
    fleet = Simulation(plan(wait_for=1, protocol=protocol.model_dump(), precision="fixed"))
    agent = fleet.add("pi0")
    seen = []
    agent.fails = lambda task: seen.append(task.protocol)  # type: ignore[func-returns-value]
    fleet.begin()
    fleet.run(until=lambda: bool(seen))
    assert seen[0] == protocol
