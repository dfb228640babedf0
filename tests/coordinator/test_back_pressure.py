"""When something is slower than the fleet: what waits is bounded, and nothing is lost or counted twice."""

from __future__ import annotations

from collections import Counter

import pytest
from rigs.simulated_fleet import Simulation, acknowledged_in

from fleetnas.coordinator.records.plan import CampaignPlan
from fleetnas.fleet_protocol.errors import TransportError
from fleetnas.fleet_protocol.transports.base import Received

PLAN = CampaignPlan(targets="auto:2", budget=10, initial_design=6, wait_for=3, grace_s=600, join_s=60, deadline_s=60)


@pytest.fixture
def fleet() -> Simulation:
    simulation = Simulation(PLAN)
    for seed in range(3):
        simulation.add(f"pi{seed}", seed=seed)
    simulation.begin()
    simulation.run(until=lambda: simulation.campaign.phase == "searching")
    return simulation


def attempts(fleet: Simulation) -> Counter[tuple[str, int]]:
    return Counter((found.key.task_id, found.key.attempt) for found in fleet.store.outcomes("run-1"))


def test_a_full_queue_to_the_broker_delays_tasks_and_loses_none(fleet: Simulation) -> None:
    publish, refused = fleet.transport.publish, []

    def full(topic: str, payload: bytes, **options: object) -> None:
        if topic.endswith("down/task") and len(refused) < 20:
            refused.append(topic)
            raise TransportError("the queue is full")
        publish(topic, payload, **options)  # type: ignore[arg-type]

    fleet.transport.publish = full  # type: ignore[method-assign]
    fleet.run()
    assert len(refused) == 20
    assert fleet.campaign.finish() == "complete"
    assert set(attempts(fleet).values()) == {1}


def test_a_device_never_holds_more_than_two_tasks_however_slow_everything_is(fleet: Simulation) -> None:
    most = 0
    while not fleet.campaign.finished:
        fleet.step(0.3)
        most = max(most, *(len(setting_run.leased) for setting_run in fleet.campaign.setting_runs.values()))
    assert most == 2


def test_results_that_arrive_together_are_stored_together_then_acknowledged(fleet: Simulation) -> None:
    transactions: list[int] = []
    acknowledged_in_store: list[bool] = []
    add, publish = fleet.store.add_outcomes, fleet.transport.publish

    def counted(arrivals):  # type: ignore[no-untyped-def]
        transactions.append(len(arrivals))
        return add(arrivals)

    def watched(topic: str, payload: bytes, **options: object) -> None:
        stored = {found.key for found in fleet.store.outcomes("run-1")}
        acknowledged_in_store.extend(key in stored for key in acknowledged_in(topic, payload))
        publish(topic, payload, **options)  # type: ignore[arg-type]

    fleet.store.add_outcomes = counted  # type: ignore[method-assign]
    fleet.transport.publish = watched  # type: ignore[method-assign]
    while not any(size >= 3 for size in transactions):
        for agent in fleet.agents:
            agent.step()
        events = []
        while (event := fleet.transport.poll(0)) is not None:
            events.append(event)
        fleet.campaign.on_events(events)
        results = sum(isinstance(e, Received) and b'"kind":"result"' in e.payload for e in events)
        assert transactions[-1:] == [results] or not results
        fleet.campaign.on_tick()
        fleet.clock.now_s += 1
    assert acknowledged_in_store
    assert all(acknowledged_in_store)
