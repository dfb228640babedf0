"""What a real mosquitto lets whom do, on the configuration that `fleetnas broker init` writes."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from rigs import waiting
from rigs.security_rig import NOW, TOPICS, Client, SecuredBroker, secured_broker

from fleetnas.coordinator.fleet.agent_link import Sharing
from fleetnas.coordinator.security.certificates import issue, new_authority
from fleetnas.coordinator.security.mosquitto import MAX_PACKET_BYTES, Login
from fleetnas.fleet_protocol.topics import DOWN_CHANNELS, UP_CHANNELS
from fleetnas.fleet_protocol.transports.base import BrokerAddress, Disconnected, Received, TransportEvent
from fleetnas.fleet_protocol.transports.mqtt import MqttTransport


@pytest.fixture(scope="module", params=["certificate", "password"])
def broker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredBroker]:
    login: Login = request.param
    with secured_broker(tmp_path_factory.mktemp(login) / "authority", login) as running:
        for name in ("alice", "bob", "watcher"):
            running.enroll(name)
        running.stop()
        running.start()  # takes note of new passwords
        yield running


class Party:
    """The coordinator and two agents; each subscribed to everything, and bob to all of alice's by name."""

    def __init__(self, broker: SecuredBroker) -> None:
        hers = [TOPICS.down("alice", down) for down in DOWN_CHANNELS] + [TOPICS.up("alice", up) for up in UP_CHANNELS]
        self.coordinator = Client(broker.coordinator.broker, "c", "#")
        self.alice = Client(broker.enrolled["alice"].broker, "a", "#")
        self.bob = Client(broker.enrolled["bob"].broker, "b", "#", *hers)
        self.all = (self.coordinator, self.alice, self.bob)
        for client in self.all:
            client.connected()
        # Subscriptions stand once what was published after them comes back; the coordinator's first, for it is to
        # hear the others.
        self.coordinator.transport.publish(TOPICS.down("nobody", "ack"), b"here")
        self.coordinator.until_topic(TOPICS.down("nobody", "ack"))
        for name, client in (("alice", self.alice), ("bob", self.bob)):
            client.transport.publish(TOPICS.up(name, "state"), b"here")
            client.until_topic(TOPICS.up(name, "state"))
            self.coordinator.until_topic(TOPICS.up(name, "state"))


@pytest.fixture
def party(broker: SecuredBroker) -> Iterator[Party]:
    made = Party(broker)
    yield made
    for client in made.all:
        client.close()


def test_an_agent_reads_its_own_orders_and_nobody_elses(party: Party) -> None:
    for channel in DOWN_CHANNELS:
        party.coordinator.transport.publish(TOPICS.down("alice", channel), b"secret")
        party.alice.until_topic(TOPICS.down("alice", channel))
    party.coordinator.transport.publish(TOPICS.down("bob", "task"), b"for bob")
    party.bob.until_topic(TOPICS.down("bob", "task"))
    assert party.bob.topics() == {TOPICS.down("bob", "task"), TOPICS.up("bob", "state")}


def test_an_agent_cannot_listen_to_what_another_says(party: Party) -> None:
    for channel in UP_CHANNELS:
        party.alice.transport.publish(TOPICS.up("alice", channel), b"result")
        party.coordinator.until_topic(TOPICS.up("alice", channel))
    party.coordinator.transport.publish(TOPICS.down("bob", "task"), b"for bob")
    party.bob.until_topic(TOPICS.down("bob", "task"))
    assert not {topic for topic in party.bob.topics() if "alice" in topic}


def test_an_agent_cannot_speak_for_another_or_for_the_coordinator(party: Party) -> None:
    forged = [TOPICS.up("alice", channel) for channel in UP_CHANNELS]
    forged += [TOPICS.down(agent, channel) for agent in ("alice", "bob") for channel in DOWN_CHANNELS]
    forged += [TOPICS.coordinator, TOPICS.up("bob", "task") + "/more", "fleetnas/v1/other/agents/bob/up/task", "any"]
    before = party.coordinator.topics()
    for topic in forged:
        party.bob.transport.publish(topic, b"forged")
        party.bob.transport.publish(topic, b"forged", retain=True)
    party.bob.transport.publish(TOPICS.up("bob", "inventory"), b"mine")
    party.coordinator.until_topic(TOPICS.up("bob", "inventory"))
    assert party.coordinator.topics() - before == {TOPICS.up("bob", "inventory")}
    party.coordinator.transport.publish(TOPICS.down("alice", "ack"), b"real")
    party.alice.until_topic(TOPICS.down("alice", "ack"))
    assert b"forged" not in {message.payload for message in party.alice.received}


def test_an_agent_hears_whether_the_coordinator_is_there(party: Party) -> None:
    party.coordinator.transport.publish(TOPICS.coordinator, b"ready", retain=True)
    assert party.bob.until_topic(TOPICS.coordinator).payload == b"ready"
    party.coordinator.transport.publish(TOPICS.coordinator, b"", retain=True)


def test_who_sends_more_than_any_message_of_the_fleet_is_thrown_out(party: Party, broker: SecuredBroker) -> None:
    party.bob.transport.publish(TOPICS.up("bob", "task"), b"x" * (MAX_PACKET_BYTES - 100))
    assert len(party.coordinator.until_topic(TOPICS.up("bob", "task")).payload) == MAX_PACKET_BYTES - 100
    party.bob.transport.publish(TOPICS.up("bob", "task"), b"x" * (MAX_PACKET_BYTES + 1), qos=0)
    party.bob.until(lambda event: isinstance(event, Disconnected))
    assert sum(message.topic == TOPICS.up("bob", "task") for message in party.coordinator.received) == 1


def test_who_watches_reads_the_fleet_and_its_searches_and_can_say_nothing(broker: SecuredBroker, party: Party) -> None:
    credentials = broker.enrolled["watcher"]
    assert credentials.role == "watcher"
    assert not credentials.trusted_keys
    watcher = Client(credentials.broker, "w", "#")
    watcher.connected()
    readable = [TOPICS.coordinator, TOPICS.run_summary("r"), TOPICS.run_page("r", 0), TOPICS.run_events("r")]
    for topic in readable:
        party.coordinator.transport.publish(topic, b"seen")
        watcher.until_topic(topic)
    for channel in UP_CHANNELS:
        party.alice.transport.publish(TOPICS.up("alice", channel), b"hers")
        party.coordinator.until_topic(TOPICS.up("alice", channel))
    for channel in DOWN_CHANNELS:
        party.coordinator.transport.publish(TOPICS.down("alice", channel), b"order")
        party.coordinator.transport.publish(TOPICS.down("watcher", channel), b"order")
    party.coordinator.transport.publish(TOPICS.coordinator, b"last")
    for client in (watcher, party.coordinator):
        client.until(lambda event: getattr(event, "payload", None) == b"last")
    may_see = {*readable, *(TOPICS.up("alice", channel) for channel in ("state", "info", "heartbeat"))}
    agents = {topic for topic in watcher.topics() if "/up/" in topic and "alice" not in topic}
    assert watcher.topics() - agents == may_see
    assert {topic.rpartition("/")[2] for topic in agents} <= {"state", "info", "heartbeat"}
    before = party.coordinator.topics()
    said = [TOPICS.up("watcher", channel) for channel in UP_CHANNELS] + readable + [TOPICS.up("alice", "task")]
    for topic in [*said, TOPICS.down("alice", "task")]:
        watcher.transport.publish(topic, b"forged")
        watcher.transport.publish(topic, b"forged", retain=True)
    watcher.close()  # after what it sent was answered
    party.bob.transport.publish(TOPICS.up("bob", "inventory"), b"mine")
    party.coordinator.until_topic(TOPICS.up("bob", "inventory"))
    assert party.coordinator.topics() - before <= {TOPICS.up("bob", "inventory")}
    assert b"forged" not in {message.payload for message in party.coordinator.received}


def test_what_coordinators_share_no_agent_keeps_from_them(broker: SecuredBroker, party: Party) -> None:
    group = Sharing.of("run", broker.coordinator.private_key).group
    assert group != Sharing.of("run", b"another key").group
    members = {name: MqttTransport(broker.coordinator.broker, name, prefer_five=True) for name in ("m", "n")}
    intruder = MqttTransport(broker.enrolled["bob"].broker, "intruder", prefer_five=True)
    own = {name: TOPICS.forwarded("run", name) for name in members}
    for name, member in members.items():
        member.subscribe(TOPICS.every_agent("task"), share=group)
        member.subscribe(own[name])
    for topic in (TOPICS.every_agent("task"), TOPICS.forwarded("run")):
        intruder.subscribe(topic, share=Sharing("run").group)
        intruder.subscribe(topic)
    intruder.subscribe(TOPICS.up("bob", "state"))
    everybody = {**members, "bob": intruder}
    own["bob"] = TOPICS.up("bob", "state")
    heard: dict[str, list[str]] = {name: [] for name in everybody}

    def come_round(name: str) -> None:
        """Everything that was sent to this one before has come."""
        everybody[name].publish(own[name], b"round")

        def round_came(event: TransportEvent) -> bool:
            if isinstance(event, Received) and event.topic != own[name]:
                heard[name].append(event.topic)
            return isinstance(event, Received) and event.topic == own[name]

        waiting.first(everybody[name], round_came, what=f"{name} hears nothing")

    for name, transport in everybody.items():
        transport.start()
        transport.wait_connected(waiting.STALL_S)
        assert transport.can_share
        come_round(name)
    intruder.publish(own["m"], b"forged")
    for _ in range(20):
        party.alice.transport.publish(TOPICS.up("alice", "task"), b"result")
    party.alice.transport.publish(TOPICS.up("alice", "state"), b"done")
    party.coordinator.until(lambda event: getattr(event, "payload", None) == b"done")
    for name in everybody:
        come_round(name)
        threading.Thread(target=everybody[name].close, daemon=True).start()
    assert [*heard["m"], *heard["n"]] == 20 * [TOPICS.up("alice", "task")]
    assert heard["m"]
    assert heard["n"]
    assert heard["bob"] == []


class TestStrangers:
    def test_without_a_login_nobody_is_let_in(self, broker: SecuredBroker) -> None:
        anonymous = dataclasses.replace(
            broker.enrolled["bob"].broker, username=None, password=None, certificate_pem=None, key_pem=None
        )
        client = Client(anonymous, "stranger", "#")
        client.refused()
        client.close()

    def test_without_tls_nobody_is_let_in(self, broker: SecuredBroker) -> None:
        client = Client(BrokerAddress("localhost", broker.port), "stranger", "#")
        client.refused()
        client.close()

    def test_a_name_that_is_not_enrolled_is_not_let_in(self, broker: SecuredBroker) -> None:
        bob = broker.enrolled["bob"].broker
        if broker.login == "password":
            stranger = dataclasses.replace(bob, username="eve", password="guess")
        else:
            theirs = issue(new_authority("another", NOW), "coordinator", "client", NOW)
            stranger = dataclasses.replace(bob, certificate_pem=theirs.certificate, key_pem=theirs.key)
        client = Client(stranger, "stranger", "#")
        client.refused()
        client.close()

    @pytest.mark.parametrize("broker", ["password"], indirect=True)
    def test_a_password_of_another_agent_does_not_open_a_name(self, broker: SecuredBroker) -> None:
        bob = broker.enrolled["bob"].broker
        client = Client(dataclasses.replace(bob, username="alice"), "stranger", "#")
        assert "authori" in client.refused().lower() or "password" in client.refusals[0].lower()
        client.close()

    @pytest.mark.parametrize("broker", ["certificate"], indirect=True)
    def test_a_certificate_is_the_name_whatever_the_login_says(self, broker: SecuredBroker, party: Party) -> None:
        bob = dataclasses.replace(broker.enrolled["bob"].broker, username="coordinator", password="x")
        client = Client(bob, "stranger", "#").connected()
        client.transport.publish(TOPICS.down("alice", "task"), b"forged")
        client.transport.publish(TOPICS.up("bob", "inventory"), b"mine")
        party.coordinator.until_topic(TOPICS.up("bob", "inventory"))
        assert TOPICS.down("alice", "task") not in party.coordinator.topics()
        client.close()


class TestTheBrokersCertificate:
    def test_a_broker_of_another_authority_is_refused(self, broker: SecuredBroker) -> None:
        other = new_authority("another", NOW).certificate
        client = Client(dataclasses.replace(broker.enrolled["bob"].broker, ca_pem=other), "b")
        assert "certificate is refused" in client.refused()
        client.close()

    def test_a_broker_under_another_name_is_refused(self, broker: SecuredBroker) -> None:
        elsewhere = dataclasses.replace(broker.enrolled["bob"].broker, host="127.0.0.2")
        client = Client(elsewhere, "b")
        assert "certificate is refused" in client.refused()
        client.close()

    @pytest.mark.parametrize("broker", ["certificate"], indirect=True)
    def test_an_agents_certificate_does_not_make_a_broker(self, broker: SecuredBroker, tmp_path: Path) -> None:
        alice = broker.enrolled["alice"]
        assert alice.certificate is not None
        assert alice.key is not None
        impostor = SecuredBroker(tmp_path / "impostor")
        (impostor.authority.broker_files / "server.pem").write_text(alice.certificate)
        (impostor.authority.broker_files / "server.key").write_text(alice.key)
        impostor.start()
        try:
            client = Client(dataclasses.replace(broker.enrolled["bob"].broker, port=impostor.port), "b")
            assert "certificate is refused" in client.refused()
            client.close()
        finally:
            impostor.stop()


class TestRevocation:
    def test_a_revoked_agent_is_shut_out_and_a_renewed_one_let_in(self, broker: SecuredBroker) -> None:
        lost = broker.enroll("carol")
        broker.authority.revoke("carol", NOW)
        kept = broker.enroll("dave")
        replaced, renewed = kept, broker.enroll("dave", renew=True)
        broker.stop()
        broker.start()
        for credentials in (lost, replaced):
            client = Client(credentials.broker, "stranger", "#")
            client.refused()
            client.close()
        client = Client(renewed.broker, "d", TOPICS.up("dave", "state")).connected()
        client.transport.publish(TOPICS.up("dave", "state"), b"here")
        client.until_topic(TOPICS.up("dave", "state"))
        client.close()
