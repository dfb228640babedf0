"""Shared subscriptions on a real broker: with MQTT 5 each message goes to one of those who share, else to all."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from rigs import brokers, waiting

from fleetnas.coordinator.app.embedded_broker import EmbeddedBroker
from fleetnas.fleet_protocol.transports.base import BrokerAddress, Connected, Received, TransportEvent
from fleetnas.fleet_protocol.transports.mqtt import MqttTransport

COUNT = 60
SENT = [str(number).encode() for number in range(COUNT)]
Make = Callable[[BrokerAddress, str], MqttTransport]


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes connected transports, closed at the end."""
    opened: list[MqttTransport] = []

    def connected(address: BrokerAddress, name: str) -> MqttTransport:
        transport = MqttTransport(address, name, prefer_five=True)
        opened.append(transport)
        transport.subscribe("news/+", share="fleetnas")
        transport.subscribe(f"ready/{name}")
        transport.start()
        waiting.first(transport, lambda event: isinstance(event, Connected))
        ready(transport, name)
        return transport

    yield connected
    for transport in opened:
        transport.close()


def ready(transport: MqttTransport, name: str) -> list[bytes]:
    """Everything that came before the broker has answered a message of one's own."""
    transport.publish(f"ready/{name}", b"")
    came: list[bytes] = []

    def answered(event: TransportEvent) -> bool:
        if not isinstance(event, Received) or event.topic == f"ready/{name}":
            return isinstance(event, Received)
        assert event.topic == "news/x"
        came.append(event.payload)
        return False

    waiting.first(transport, answered, what="the broker does not answer")
    return came


def heard(sender: MqttTransport, members: dict[str, MqttTransport]) -> dict[str, list[bytes]]:
    """What each member heard of `SENT`."""
    for payload in SENT:
        sender.publish("news/x", payload)
    found: dict[str, list[bytes]] = {name: [] for name in members}

    def all_came() -> bool:
        for name, member in members.items():
            while (event := member.poll(0)) is not None:
                if isinstance(event, Received):
                    found[name].append(event.payload)
        return {payload for came in found.values() for payload in came} == set(SENT)

    waiting.until(all_came, what=found)
    for name, member in members.items():
        found[name] += ready(member, name)
    return found


def test_each_message_goes_to_one_of_those_who_share(mosquitto_broker: brokers.Mosquitto, make: Make) -> None:
    members = {name: make(mosquitto_broker.address, name) for name in ("a", "b")}
    assert all(member.can_share for member in members.values())
    sender = MqttTransport(mosquitto_broker.address, "agent")
    sender.start()
    sender.wait_connected(waiting.STALL_S)
    found = heard(sender, members)
    assert sorted(found["a"] + found["b"]) == sorted(SENT)
    assert found["a"]
    assert found["b"]
    sender.close()


def test_a_broker_without_five_gives_all_to_everybody(make: Make) -> None:
    with EmbeddedBroker(port=0) as embedded:
        members = {name: make(embedded.address, name) for name in ("a", "b")}
        assert not any(member.can_share for member in members.values())
        found = heard(members["a"], members)
        assert {name: sorted(came) for name, came in found.items()} == {"a": sorted(SENT), "b": sorted(SENT)}
        for member in members.values():
            member.close()
