"""Several coordinators of one fleet: each hears a part of what agents say of tasks, and passes on what is another's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
from rigs.simulated_fleet import TOPICS, SimulatedAgent, Simulation

from fleetnas.coordinator.monitoring.publisher import Publisher
from fleetnas.coordinator.records.plan import CampaignPlan
from fleetnas.coordinator.store.store import MeasurementStore
from fleetnas.coordinator.tuning.setting_tuner import SettingTuner
from fleetnas.fleet_protocol.codec import decode_task_update, encode
from fleetnas.fleet_protocol.errors import ProtocolError, UsageError
from fleetnas.fleet_protocol.messages import (
    AgentInfo,
    BlobRequest,
    Failed,
    Measurement,
    Rejected,
    Result,
    RuntimeSetting,
    TaskKey,
)
from fleetnas.fleet_protocol.orders import MeasureTask
from fleetnas.fleet_protocol.topics import AgentUp
from fleetnas.fleet_protocol.transports.memory import Delivery

PLAN = CampaignPlan(targets="auto:1", budget=5, initial_design=4, wait_for=1, grace_s=5)


class SharedFleet:
    """Coordinators over one broker, one store and the same agents."""

    def __init__(
        self, coordinators: int = 2, agents: int = 1, *, share: bool = True, seconds_per_task: float = 1.0
    ) -> None:
        first = Simulation(PLAN, run_id="run-0", client_id="c0", share=share)
        self.simulations = [first]
        for number in range(1, coordinators):
            other = Simulation(PLAN, first.broker, first.clock, run_id=f"run-{number}", client_id=f"c{number}")
            other.store, other.share = first.store, share
            self.simulations.append(other)
        self.agents = [
            first.add(f"pi{number}", seed=number, seconds_per_task=seconds_per_task) for number in range(agents)
        ]
        #: Results that agents sent, and by whom each was heard.
        self.sent: list[TaskKey] = []
        self.heard: list[tuple[str, TaskKey]] = []
        spy = first.broker.transport("spy")
        spy.subscribe(TOPICS.every_agent("task"))
        spy.start()
        first.broker.fault = self._listen
        self.broker, self.store, self.clock = first.broker, first.store, first.clock

    def _listen(self, delivery: Delivery) -> tuple[Delivery]:
        address = TOPICS.parse(delivery.message.topic)
        if isinstance(address, AgentUp) and address.channel == "task":
            try:
                update = decode_task_update(delivery.message.payload)
            except ProtocolError:
                return (delivery,)
            if isinstance(update, Result) and delivery.client_id == "spy":
                self.sent.append(update.task)
            elif isinstance(update, Result):
                self.heard.append((delivery.client_id, update.task))
        return (delivery,)

    def begin(self) -> None:
        for simulation in self.simulations:
            simulation.begin()

    def step(self) -> None:
        for simulation in self.simulations:
            if hasattr(simulation, "campaign"):
                simulation.step(0.0)
        self.clock.now_s += 1.0

    def until(self, reached: Callable[[], bool], most_steps: int = 2000) -> None:
        for _ in range(most_steps):
            if reached():
                return
            self.step()
        raise AssertionError([list(simulation.campaign.log)[-5:] for simulation in self.simulations])

    def run(self) -> None:
        self.until(lambda: all(simulation.campaign.finished for simulation in self.simulations))


def test_all_campaigns_complete_and_one_coordinator_stores_each_result_once() -> None:
    fleet = SharedFleet(coordinators=3, agents=2)
    fleet.begin()
    fleet.run()
    for simulation in fleet.simulations:
        assert simulation.campaign.status == "complete"
        assert simulation.refused == []
    assert Counter(key for _, key in fleet.heard) == Counter(fleet.sent)
    by_coordinator = Counter(client for client, _ in fleet.heard)
    assert set(by_coordinator) == {"c0", "c1", "c2"}
    assert min(by_coordinator.values()) > 0.2 * len(fleet.heard)
    stored = [found.key for simulation in fleet.simulations for found in fleet.store.outcomes(simulation.run_id)]
    assert len(stored) == len(set(stored))
    assert set(stored) == set(fleet.sent)
    assert all(key.attempt == 1 for key in stored)
    assert not any(agent.outbox for agent in fleet.agents)


def test_a_shared_campaign_begins_as_it_would_alone() -> None:
    """What comes later depends on noise, which is drawn in the order of measuring, others' tasks included."""
    first = []
    for fleet in (SharedFleet(coordinators=1, share=False), SharedFleet()):
        fleet.begin()
        fleet.run()
        first.append({found.task.architecture for found in fleet.store.outcomes("run-0")[: PLAN.initial_design]})
    assert len(first[0]) == PLAN.initial_design
    assert first[0] == first[1]


def test_a_run_is_resumed_from_what_others_heard() -> None:
    fleet = SharedFleet()
    fleet.begin()
    fleet.until(lambda: len(fleet.store.outcomes("run-1")) >= 4)
    fleet.simulations[1].vanish()
    for _ in range(3):
        fleet.simulations[0].step()
    before = {found.key: found.outcome for found in fleet.store.outcomes("run-1")}
    fleet.simulations[1].begin(resume=True)
    fleet.run()
    after = {found.key: found.outcome for found in fleet.store.outcomes("run-1")}
    assert before.items() <= after.items()
    assert len({key.task_id for key in after}) == len(after)
    assert fleet.simulations[1].campaign.status == "complete"


def test_a_result_whose_coordinator_is_gone_is_stored_by_who_hears_it_again() -> None:
    fleet = SharedFleet()
    fleet.begin()
    fleet.until(lambda: len(fleet.store.outcomes("run-1")) >= 2)
    fleet.simulations.pop().vanish()
    fleet.run()
    for _ in range(400):  # agents repeat what nobody acknowledged
        fleet.step()
    assert not any(agent.outbox for agent in fleet.agents)
    held = {key for _, key in fleet.heard if key.task_id.startswith("run-1.")}
    assert {found.key for found in fleet.store.outcomes("run-1")} == held


def test_a_refusal_reaches_the_coordinator_that_asked() -> None:
    fleet = SharedFleet()
    fleet.begin()
    fleet.step()
    refusing: SimulatedAgent = fleet.agents[0]
    fleet.until(lambda: any(task.run_id == "run-1" for task in refusing.queue))
    order = next(task for task in refusing.queue if task.run_id == "run-1")
    refusal = Rejected(task=order.task, reason="setting_unavailable", detail="unplugged")
    for _ in range(2):  # one goes to each coordinator
        refusing.transport.publish(TOPICS.up(refusing.name, "task"), encode(refusal))
    fleet.step()
    (setting_run,) = [t for t in fleet.simulations[1].campaign.setting_runs.values() if t.device == refusing.name]
    assert (setting_run.status, setting_run.reason) == ("failed", "it refuses tasks (setting_unavailable): unplugged")
    assert all(t.status != "failed" for t in fleet.simulations[0].campaign.setting_runs.values())


@pytest.mark.parametrize("share", [True, False])
def test_a_second_coordinator_does_not_call_off_the_work_of_the_first(share: bool) -> None:
    fleet = SharedFleet(share=share, seconds_per_task=20.0)
    first, second = fleet.simulations
    first.begin()
    fleet.until(lambda: any(agent.queue for agent in fleet.agents))
    at_work = [task.task for agent in fleet.agents for task in agent.queue]
    second.begin()  # upon which every agent says what it holds
    for simulation in (second, second, first):
        simulation.step(0.0)
    assert {task.task for agent in fleet.agents for task in agent.queue} >= set(at_work)
    fleet.run()
    outcomes = [found for run in ("run-0", "run-1") for found in fleet.store.outcomes(run)]
    assert all(found.key.attempt == 1 for found in outcomes)
    assert all(isinstance(found.outcome, Measurement) for found in outcomes)


def test_what_an_agent_invents_of_anothers_task_changes_nothing() -> None:
    fleet = SharedFleet(agents=2)
    fleet.begin()
    fleet.until(lambda: bool(fleet.agents[0].queue))
    victim = fleet.agents[0].queue[0].task
    thief = fleet.agents[1]
    forged = Failed(task=victim, reason="crashed", detail="invented")
    for _ in range(4):
        thief.transport.publish(TOPICS.up(thief.name, "task"), encode(forged))
    fleet.run()
    assert not any(
        isinstance(found.outcome, Failed) for run in ("run-0", "run-1") for found in fleet.store.outcomes(run)
    )
    assert any("was not given" in line for simulation in fleet.simulations for line in simulation.refused)


@pytest.mark.parametrize("one_store", [True, False])
def test_the_work_of_another_run_is_no_refused_message(one_store: bool) -> None:
    """Without sharing both coordinators receive all that agents say; most refused lines of a minute are not shown."""
    fleet = SharedFleet(agents=2, share=False, seconds_per_task=3.0)
    if not one_store:
        fleet.simulations[1].store = MeasurementStore.open("sqlite://")
    fleet.begin()
    fleet.run()
    for simulation in fleet.simulations:
        assert simulation.refused == []
        assert simulation.campaign.status == "complete"
        outcomes = simulation.store.outcomes(simulation.run_id)
        assert len({found.key for found in outcomes}) == len(outcomes)


def publishing(fleet: SharedFleet) -> Callable[[], bool]:
    """Have every run publish itself at each call; returns whether all have ended."""
    publishers = {}
    for simulation in fleet.simulations:
        publisher = Publisher(simulation.transport, TOPICS, simulation.run_id, fleet.clock)
        simulation.link.listen_to_runs(publisher)
        publishers[simulation.run_id] = publisher

    def publish() -> bool:
        for simulation in fleet.simulations:
            publishers[simulation.run_id].update(simulation.campaign.snapshot(fleet.clock.unix()))
        return all(simulation.campaign.finished for simulation in fleet.simulations)

    return publish


def test_a_result_that_its_own_coordinator_has_taken_is_no_left_one() -> None:
    fleet = SharedFleet(share=False)
    fleet.begin()
    fleet.until(publishing(fleet))
    assert not any("still had" in line for simulation in fleet.simulations for line in simulation.campaign.log)


def test_a_result_whose_coordinator_published_until_it_was_killed_is_a_left_one() -> None:
    fleet = SharedFleet(share=False, seconds_per_task=20.0)
    fleet.begin()
    publish = publishing(fleet)
    fleet.until(lambda: publish() or any(task.run_id == "run-1" for task in fleet.agents[0].queue))
    fleet.simulations.pop().vanish()
    request = BlobRequest(sha256="ab" * 32, offset=0, length=1000)
    fleet.until(lambda: publish() and not fleet.agents[0].outbox)
    (first,) = fleet.simulations
    assert any("still had a result of run run-1" in line for line in first.campaign.log)
    # Nor is anything that it would have served asked for in vain without a line.
    fleet.agents[0].transport.publish(TOPICS.up("pi0", "blob"), encode(request))
    fleet.step()
    assert any("which is not served" in line for line in first.refused)


@pytest.mark.parametrize("share", [True, False])
def test_a_result_that_breaks_the_contract_counts_in_its_own_run_alone(share: bool) -> None:
    class Lying(SimulatedAgent):
        def _work(self, task: MeasureTask) -> None:
            if task.run_id == "run-0":
                super()._work(task)
                return
            honest = Result(task=task.task, measurement=self._measure(task))
            payload = encode(honest).replace(b'"half_width_percent":0.8', b'"half_width_percent":1e200', 1)
            self.outbox[task.task] = payload
            self.transport.publish(TOPICS.up(self.name, "task"), payload)

    fleet = SharedFleet(agents=0, share=share)
    first, second = fleet.simulations
    liar = first.take_in(Lying(fleet.broker, "liar", fleet.clock))
    fleet.begin()
    fleet.run()
    assert first.campaign.status == "complete"
    assert first.refused == second.refused == []
    outcomes = [found.outcome for found in fleet.store.outcomes("run-1")]
    assert len(outcomes) >= PLAN.initial_design
    assert all(isinstance(outcome, Failed) and "half_width_percent" in outcome.detail for outcome in outcomes)
    assert liar.outbox == {}


@pytest.mark.parametrize("share", [True, False])
def test_a_result_of_a_later_version_is_left_to_the_coordinator_of_its_run(share: bool) -> None:
    fleet = SharedFleet(share=share)
    fleet.begin()
    fleet.until(lambda: bool(fleet.agents[0].queue))
    task = fleet.agents[0].queue[0].task
    failed = encode(Failed(task=task, reason="crashed")).replace(b'"schema_version":1', b'"schema_version":2')
    assert b'"schema_version":2' in failed
    for _ in range(2):  # one goes to each coordinator
        fleet.agents[0].transport.publish(TOPICS.up("pi0", "task"), failed)
    fleet.run()
    outcomes = [found.outcome for run in ("run-0", "run-1") for found in fleet.store.outcomes(run)]
    assert not any(isinstance(outcome, Failed) for outcome in outcomes)
    assert any("version 2" in line for simulation in fleet.simulations for line in simulation.refused)


def test_a_result_for_a_setting_that_takes_no_part_any_more_is_stored() -> None:
    fleet = SharedFleet(coordinators=1, agents=2, share=False, seconds_per_task=20.0)
    (only,) = fleet.simulations
    search = only.make_search
    only.begin()
    fleet.until(lambda: bool(fleet.agents[0].queue))
    only.vanish()
    while not fleet.agents[0].outbox:
        fleet.agents[0].step()
        fleet.clock.now_s += 1.0

    def none(info: AgentInfo, setting: RuntimeSetting) -> SettingTuner:
        if info.agent == "pi0":
            raise UsageError("its accuracy predictor is gone")
        return search(info, setting)

    only.make_search = none  # type: ignore[method-assign]
    only.begin(resume=True)
    fleet.until(lambda: not fleet.agents[0].outbox)
    stored = [found.task.device for found in fleet.store.outcomes("run-0")]
    assert stored.count("pi0") == 1


@pytest.mark.parametrize(("coordinators", "refused"), [(1, True), (2, False)])
def test_a_request_for_the_bundle_of_another_run_is_no_refused_message(coordinators: int, refused: bool) -> None:
    fleet = SharedFleet(coordinators, share=False)
    fleet.begin()
    publish = publishing(fleet)
    for _ in range(3):
        publish()
        fleet.step()
    (agent,) = fleet.agents
    request = BlobRequest(sha256="ab" * 32, offset=0, length=1000)
    agent.transport.publish(TOPICS.up(agent.name, "blob"), encode(request))
    fleet.until(publish)
    assert any("which is not served" in line for line in fleet.simulations[0].refused) is refused
