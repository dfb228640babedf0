"""An owner that does not poll holds the broker back, and loses nothing."""

from __future__ import annotations

import threading
import time

import brokers
import pytest

from fleet_protocol import mqtt
from fleet_protocol.mqtt import MqttTransport
from fleet_protocol.transport import Connected, Received

COUNT = 300


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mqtt, "MAX_QUEUED_EVENTS", 5)


def connected(transport: MqttTransport) -> MqttTransport:
    transport.start()
    transport.wait_connected(10)
    assert isinstance(transport.poll(1), Connected)
    return transport


def flooded(broker: brokers.Mosquitto) -> tuple[MqttTransport, MqttTransport]:
    """A receiver that has not polled since it was sent more than its queue takes, and who sent it."""
    receiver = MqttTransport(broker.address, "receiver")
    receiver.subscribe("t")
    receiver.subscribe("ready")
    connected(receiver)
    sender = connected(MqttTransport(broker.address, "sender"))
    sender.publish("ready", b"")
    while not isinstance(receiver.poll(1), Received):
        pass
    for number in range(COUNT):
        sender.publish("t", str(number).encode())
    with receiver._events.not_empty:
        assert receiver._events.not_empty.wait_for(lambda: receiver._events._qsize() == receiver._events.maxsize, 20)
    return receiver, sender


@pytest.mark.usefixtures("narrow")
def test_every_message_waits_for_an_owner_who_comes_back(mosquitto_broker: brokers.Mosquitto) -> None:
    receiver, sender = flooded(mosquitto_broker)
    receiver.publish("t", b"own")  # what the owner says meanwhile does not wait for what it has not heard
    got: list[bytes] = []
    give_up = time.monotonic() + 20
    while len(got) <= COUNT and time.monotonic() < give_up:
        event = receiver.poll(0.1)
        if isinstance(event, Received):
            got.append(event.payload)
    assert [payload for payload in got if payload != b"own"] == [str(number).encode() for number in range(COUNT)]
    assert b"own" in got
    for transport in (receiver, sender):
        transport.close()


@pytest.mark.usefixtures("narrow")
def test_an_owner_who_leaves_instead_is_not_held(mosquitto_broker: brokers.Mosquitto) -> None:
    receiver, sender = flooded(mosquitto_broker)
    receiver.publish("t", b"goodbye")
    closing = threading.Thread(target=receiver.close)
    closing.start()
    closing.join(10)
    assert not closing.is_alive()
    sender.close()
