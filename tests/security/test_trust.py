"""An agent with credentials against whoever can write on its topics but is not its coordinator, on a real mosquitto."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from rigs.agent_rig import BLOB, task
from rigs.security_rig import TOPICS, Client, SecuredAgent, SecuredBroker, SigningCoordinator, secured_broker

from fleetnas.fleet_protocol.codec import encode
from fleetnas.fleet_protocol.messages import Failed, Rejected
from fleetnas.fleet_protocol.orders import Acknowledgement, CancelTask
from fleetnas.fleet_protocol.security.signing import OrderSigner, new_private_key


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredBroker]:
    with secured_broker(tmp_path_factory.mktemp("trust") / "authority") as running:
        for name in ("alice", "bob"):
            running.enroll(name)
        yield running


@pytest.fixture
def coordinator(broker: SecuredBroker) -> Iterator[SigningCoordinator]:
    made = SigningCoordinator(broker.coordinator)
    made.until(None, lambda: made.connected)
    yield made
    made.transport.close()


@pytest.fixture
def alice(broker: SecuredBroker, coordinator: SigningCoordinator, tmp_path: Path) -> Iterator[SecuredAgent]:
    agent = SecuredAgent.enrolled(broker.enrolled["alice"], tmp_path / "alice")
    coordinator.until(agent, lambda: coordinator.sessions.get("alice") == agent.identity.session)
    yield agent
    agent.stop()


@pytest.fixture
def intruder(broker: SecuredBroker) -> Iterator[Client]:
    """Has the broker in its hands, reads and writes everything on it, and does not have the signing key."""
    client = Client(broker.coordinator.broker, "intruder", TOPICS.down("alice", "task"), TOPICS.down("alice", "ack"))
    client.connected()
    yield client
    client.close()


def measured(coordinator: SigningCoordinator, agent: SecuredAgent, task_id: str) -> None:
    coordinator.until(agent, lambda: bool(coordinator.said("result", task_id)))


def test_signed_work_is_done_and_its_acknowledgement_believed(
    coordinator: SigningCoordinator, alice: SecuredAgent
) -> None:
    coordinator.link.send_task("alice", task(1))
    measured(coordinator, alice, "task-1")
    assert len(alice.outbox) == 1
    coordinator.link.acknowledge("alice", task(1).task)
    coordinator.until(alice, lambda: alice.service.idle)
    assert len(alice.outbox) == 0


def test_forged_orders_change_nothing(coordinator: SigningCoordinator, alice: SecuredAgent, intruder: Client) -> None:
    coordinator.link.send_task("alice", task(1))
    measured(coordinator, alice, "task-1")
    stranger = OrderSigner(new_private_key(), "lab", 1)
    stranger.note_session("alice", alice.identity.session)
    for message in (task(2), CancelTask(task=task(1).task)):
        intruder.transport.publish(TOPICS.down("alice", "task"), encode(message))
        signed = stranger.sign("alice", "task", encode(message))
        intruder.transport.publish(TOPICS.down("alice", "task"), signed)
    forged = encode(Acknowledgement(task=task(1).task))
    intruder.transport.publish(TOPICS.down("alice", "ack"), forged)
    intruder.transport.publish(TOPICS.down("alice", "ack"), stranger.sign("alice", "ack", forged))
    intruder.until_topic(TOPICS.down("alice", "ack"))
    # What is genuine and comes after them is done; what they asked for is not.
    coordinator.link.send_task("alice", task(3))
    measured(coordinator, alice, "task-3")
    assert alice.measurer.subnets == 2
    assert task(1).task in {key for key, _ in alice.outbox.pending()}
    assert not coordinator.said("accepted", "task-2")
    refusals = coordinator.said("rejected", "task-2")
    assert {update.reason for update in refusals if isinstance(update, Rejected)} == {"not_trusted"}


def test_a_replayed_order_is_not_carried_out_again(
    coordinator: SigningCoordinator, alice: SecuredAgent, intruder: Client
) -> None:
    coordinator.link.send_task("alice", task(1))
    genuine = intruder.until_topic(TOPICS.down("alice", "task")).payload
    measured(coordinator, alice, "task-1")
    coordinator.link.acknowledge("alice", task(1).task)
    coordinator.until(alice, lambda: alice.service.idle)
    intruder.transport.publish(TOPICS.down("alice", "task"), genuine)
    intruder.until_topic(TOPICS.down("alice", "task"))
    coordinator.link.send_task("alice", task(2))
    measured(coordinator, alice, "task-2")
    assert alice.measurer.subnets == 2
    assert len(coordinator.said("accepted", "task-1")) == len(coordinator.said("result", "task-1")) == 1
    assert not coordinator.said("rejected", "task-1")


def test_an_order_is_no_order_for_another_agent_nor_after_a_restart(
    coordinator: SigningCoordinator, alice: SecuredAgent, intruder: Client, broker: SecuredBroker, tmp_path: Path
) -> None:
    coordinator.link.send_task("alice", task(1))
    genuine = intruder.until_topic(TOPICS.down("alice", "task")).payload
    measured(coordinator, alice, "task-1")
    coordinator.link.acknowledge("alice", task(1).task)
    coordinator.until(alice, lambda: alice.service.idle)
    alice.stop()
    bob = SecuredAgent.enrolled(broker.enrolled["bob"], tmp_path / "bob")
    again = SecuredAgent.enrolled(broker.enrolled["alice"], tmp_path / "alice-without-memory")
    try:
        for agent in (bob, again):
            name, session = agent.identity.name, agent.identity.session
            coordinator.until(agent, lambda: coordinator.sessions.get(name) == session)  # noqa: B023
            intruder.transport.publish(TOPICS.down(name, "task"), genuine)
            coordinator.link.send_task(name, task(7))
            measured(coordinator, agent, "task-7")
            assert agent.measurer.subnets == 1
            coordinator.updates.clear()
    finally:
        bob.stop()
        again.stop()


def test_a_bundle_altered_by_one_bit_is_never_measured(broker: SecuredBroker, tmp_path: Path) -> None:
    altered = bytearray(BLOB)
    altered[77_777] ^= 1
    coordinator = SigningCoordinator(broker.coordinator, blob=bytes(altered))
    agent = SecuredAgent.enrolled(broker.enrolled["bob"], tmp_path / "bob")
    try:
        coordinator.until(agent, lambda: coordinator.sessions.get("bob") == agent.identity.session)
        coordinator.link.send_task("bob", task(1))
        coordinator.until(agent, lambda: bool(coordinator.said("failed", "task-1")))
        (failed,) = coordinator.said("failed", "task-1")
        assert isinstance(failed, Failed)
        assert failed.reason == "bundle"
        assert "SHA-256" in failed.detail
        assert agent.measurer.subnets == 0
    finally:
        agent.stop()
        coordinator.transport.close()


def test_a_coordinator_that_does_not_sign_is_told_why_it_is_not_obeyed(broker: SecuredBroker, tmp_path: Path) -> None:
    coordinator = SigningCoordinator(broker.coordinator, signed=False)
    agent = SecuredAgent.enrolled(broker.enrolled["bob"], tmp_path / "bob")
    try:
        coordinator.until(agent, lambda: coordinator.sessions.get("bob") == agent.identity.session)
        coordinator.link.send_task("bob", task(1))
        coordinator.until(agent, lambda: bool(coordinator.said("rejected", "task-1")))
        (rejected,) = coordinator.said("rejected", "task-1")
        assert isinstance(rejected, Rejected)
        assert "--credentials" in rejected.detail
    finally:
        agent.stop()
        coordinator.transport.close()
