"""Shared subscriptions on a real broker: with MQTT 5 each message goes to one of those who share, else to all."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import brokers
import pytest

from coordinator.broker import EmbeddedBroker
from fleet_protocol.mqtt import MqttTransport
from fleet_protocol.transport import BrokerAddress, Connected, Received

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
        transport.wait_connected(20)
        assert isinstance(transport.poll(1), Connected)
        ready(transport, name)
        return transport

    yield connected
    for transport in opened:
        transport.close()


def ready(transport: MqttTransport, name: str) -> list[bytes]:
    """Everything that came before the broker has answered a message of one's own."""
    transport.publish(f"ready/{name}", b"")
    came: list[bytes] = []
    give_up = time.monotonic() + 20
    while time.monotonic() < give_up:
        event = transport.poll(0.1)
        if isinstance(event, Received):
            if event.topic == f"ready/{name}":
                return came
            assert event.topic == "news/x"
            came.append(event.payload)
    raise AssertionError("the broker does not answer")


def heard(sender: MqttTransport, members: dict[str, MqttTransport]) -> dict[str, list[bytes]]:
    """What each member heard of `SENT`."""
    for payload in SENT:
        sender.publish("news/x", payload)
    found: dict[str, list[bytes]] = {name: [] for name in members}
    give_up = time.monotonic() + 20
    while {payload for came in found.values() for payload in came} != set(SENT):
        assert time.monotonic() < give_up
        for name, member in members.items():
            event = member.poll(0.02)
            if isinstance(event, Received):
                found[name].append(event.payload)
    for name, member in members.items():
        found[name] += ready(member, name)
    return found


def test_each_message_goes_to_one_of_those_who_share(mosquitto_broker: brokers.Mosquitto, make: Make) -> None:
    members = {name: make(mosquitto_broker.address, name) for name in ("a", "b")}
    assert all(member.can_share for member in members.values())
    sender = MqttTransport(mosquitto_broker.address, "agent")
    sender.start()
    sender.wait_connected(20)
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
