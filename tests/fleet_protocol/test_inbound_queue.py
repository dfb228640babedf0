"""An owner that does not poll holds the broker back, and loses nothing."""

from __future__ import annotations

import queue
import threading
from typing import Any

import pytest
from rigs import brokers, waiting

from fleetnas.fleet_protocol.transports import mqtt
from fleetnas.fleet_protocol.transports.base import Connected, Received
from fleetnas.fleet_protocol.transports.mqtt import MqttTransport

COUNT = 300


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set once an event finds no room in a queue; queues are short."""
    monkeypatch.setattr(mqtt, "MAX_QUEUED_EVENTS", 5)
    found_full = threading.Event()
    put = queue.Queue.put

    def put_or_tell(self: queue.Queue[Any], *arguments: Any, **options: Any) -> None:
        try:
            put(self, *arguments, **options)
        except queue.Full:
            found_full.set()
            raise

    monkeypatch.setattr(queue.Queue, "put", put_or_tell)
    return found_full


def connected(transport: MqttTransport) -> MqttTransport:
    transport.start()
    waiting.first(transport, lambda event: isinstance(event, Connected))
    return transport


def flooded(broker: brokers.Mosquitto, full: threading.Event) -> tuple[MqttTransport, MqttTransport]:
    """A receiver that has not polled since it was sent more than its queue takes, and who sent it."""
    receiver = MqttTransport(broker.address, "receiver")
    receiver.subscribe("t")
    receiver.subscribe("ready")
    connected(receiver)
    sender = connected(MqttTransport(broker.address, "sender"))
    sender.publish("ready", b"")
    waiting.first(receiver, lambda event: isinstance(event, Received))
    for number in range(COUNT):
        sender.publish("t", str(number).encode())
    waiting.until(full.is_set, what="the receiver's queue is never full")
    return receiver, sender


def test_every_message_waits_for_an_owner_who_comes_back(
    mosquitto_broker: brokers.Mosquitto, full: threading.Event
) -> None:
    receiver, sender = flooded(mosquitto_broker, full)
    receiver.publish("t", b"own")  # what the owner says meanwhile does not wait for what it has not heard
    got: list[bytes] = []
    while len(got) <= COUNT:
        event = waiting.first(receiver, lambda event: isinstance(event, Received), what=lambda: f"only {got} came")
        assert isinstance(event, Received)
        got.append(event.payload)
    assert [payload for payload in got if payload != b"own"] == [str(number).encode() for number in range(COUNT)]
    assert b"own" in got
    for transport in (receiver, sender):
        transport.close()


def test_an_owner_who_leaves_instead_is_not_held(mosquitto_broker: brokers.Mosquitto, full: threading.Event) -> None:
    receiver, sender = flooded(mosquitto_broker, full)
    receiver.publish("t", b"goodbye")
    closing = threading.Thread(target=receiver.close)
    closing.start()
    waiting.until(lambda: not closing.is_alive(), what="the owner is held")
    sender.close()
