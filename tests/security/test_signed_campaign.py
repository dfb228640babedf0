"""Campaigns with signed orders: what is refused must not cost what was promised of durability."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from numpy.random import default_rng
from rigs.simulated_fleet import SPACE, TOPICS, FakeClock, SimulatedAgent, Simulation

from fleetnas.coordinator.records.plan import CampaignPlan
from fleetnas.coordinator.records.targets import TargetRequest
from fleetnas.fleet_protocol.errors import UntrustedError
from fleetnas.fleet_protocol.security.signing import OrderSigner, OrderVerifier, new_private_key, public_key_of
from fleetnas.fleet_protocol.transports.base import Received
from fleetnas.fleet_protocol.transports.memory import Delivery, MemoryBroker

KEY = new_private_key()
PLAN = CampaignPlan(targets="auto:3", budget=14, initial_design=8, wait_for=2, grace_s=120, join_s=120, deadline_s=60)
#: The same devices measure two given subnets.
GIVEN = PLAN.model_copy(
    update={"targets": TargetRequest(), "architectures": tuple(SPACE.decode(SPACE.sample(2, default_rng(5))))}
)


class VerifyingAgent(SimulatedAgent):
    """Takes orders as an agent with credentials does."""

    def __init__(self, broker: MemoryBroker, name: str, clock: FakeClock, **options: Any) -> None:
        super().__init__(broker, name, clock, **options)
        self.verifier = OrderVerifier([public_key_of(KEY)], "test", name, self.session)
        self.refused = 0

    def _hear(self, message: Received) -> None:
        for channel in ("task", "ack"):
            if message.topic == TOPICS.down(self.name, channel):  # type: ignore[arg-type]
                try:
                    self.verifier.check(channel, message.payload)  # type: ignore[arg-type]
                except UntrustedError:
                    self.refused += 1
                    return
        super()._hear(message)


def signed_fleet(broker: MemoryBroker | None = None, plan: CampaignPlan = PLAN) -> Simulation:
    simulation = Simulation(plan, signer=OrderSigner(KEY, "test", 1), **({"broker": broker} if broker else {}))
    for seed in range(2):
        join(simulation, f"pi{seed}", seed=seed)
    return simulation


def join(simulation: Simulation, name: str, **options: Any) -> VerifyingAgent:
    agent = VerifyingAgent(simulation.broker, name, simulation.clock, **options)
    agent.start()
    simulation.agents.append(agent)
    return agent


def outcomes(simulation: Simulation) -> Counter[tuple[str, int]]:
    return Counter((found.key.task_id, found.key.attempt) for found in simulation.store.outcomes("run-1"))


@pytest.mark.parametrize("plan", [PLAN, GIVEN], ids=["search", "measure"])
def test_nothing_genuine_is_refused(plan: CampaignPlan) -> None:
    simulation = signed_fleet(plan=plan)
    simulation.begin()
    simulation.run()
    assert simulation.campaign.finish() == "complete"
    assert [agent.refused for agent in simulation.agents if isinstance(agent, VerifyingAgent)] == [0, 0]


@pytest.mark.parametrize("seed", range(3))
def test_lost_repeated_and_late_messages_cost_nothing(seed: int) -> None:
    rng = random.Random(seed)
    held: list[Delivery] = []

    def fault(delivery: Delivery) -> list[Delivery]:
        fate = rng.random()
        if delivery.message.topic.endswith(("/state", "/info")):
            return [delivery]  # brokers retain these
        if fate < 0.02:
            return []
        if fate < 0.08:
            held.append(delivery)
            return []
        late = [held.pop(rng.randrange(len(held)))] if held and fate > 0.7 else []
        return [delivery, delivery, *late] if fate < 0.3 else [delivery, *late]

    simulation = signed_fleet(MemoryBroker(fault))
    simulation.begin()
    simulation.run(most_steps=5000)
    assert simulation.campaign.finish() == "complete"
    assert set(outcomes(simulation).values()) == {1}
    assert sum(agent.refused for agent in simulation.agents if isinstance(agent, VerifyingAgent)) > 0


def test_an_agent_that_restarts_gets_orders_for_its_new_session() -> None:
    simulation = signed_fleet()
    simulation.begin()
    for session in (2, 3, 4):
        before = len(outcomes(simulation))
        simulation.run(until=lambda: len(outcomes(simulation)) >= before + 4)  # noqa: B023
        simulation.broker.cut("pi1")
        simulation.agents.pop()
        join(simulation, "pi1", seed=1, session=session)
    simulation.run()
    assert simulation.campaign.finish() == "complete"
    assert set(outcomes(simulation).values()) == {1}


def test_a_resumed_coordinator_is_obeyed_and_its_predecessors_orders_are_not() -> None:
    recorded: list[Received] = []

    def record(delivery: Delivery) -> list[Delivery]:
        if delivery.message.topic == TOPICS.down("pi0", "task"):
            recorded.append(delivery.message)
        return [delivery]

    simulation = signed_fleet(MemoryBroker(record))
    simulation.begin()
    simulation.run(until=lambda: len(outcomes(simulation)) >= 6)
    simulation.vanish()
    simulation.signer = OrderSigner(KEY, "test", 2)
    simulation.begin(resume=True)
    simulation.run()
    assert simulation.campaign.finish() == "complete"
    agent = simulation.agents[0]
    assert isinstance(agent, VerifyingAgent)
    measured, refused = len(agent.measured), agent.refused
    replayed = list(recorded)
    for message in replayed:
        simulation.broker.publish(message.topic, message.payload)
        agent.step()
    assert len(agent.measured) == measured
    assert agent.refused == refused + len(replayed)
