"""The embedded broker does all that the wire contract asks of a broker."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator

import pytest
from rigs import waiting

from fleetnas.coordinator.app.embedded_broker import EmbeddedBroker
from fleetnas.fleet_protocol.codec import MAX_CHUNK_BYTES, BlobChunk, decode_chunk, encode_chunk
from fleetnas.fleet_protocol.errors import TransportError
from fleetnas.fleet_protocol.transports.base import Connected, Received, Will
from fleetnas.fleet_protocol.transports.mqtt import MqttTransport
from fleetnas.fleet_protocol.transports.mqtt_process import MqttProcess


@pytest.fixture
def broker() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker(port=0) as running:
        yield running


@pytest.fixture
def connect(broker: EmbeddedBroker) -> Iterator[Callable[..., MqttTransport]]:
    opened: list[MqttTransport] = []

    def connected(name: str, will: Will | None = None) -> MqttTransport:
        transport = MqttTransport(broker.address, name, will)
        transport.start()
        waiting.first(transport, lambda event: isinstance(event, Connected))
        opened.append(transport)
        return transport

    yield connected
    for transport in opened:
        transport.close()


def received(transport: MqttTransport, topic: str) -> Received:
    event = waiting.first(transport, lambda event: isinstance(event, Received) and event.topic == topic, what=topic)
    assert isinstance(event, Received)
    return event


def subscribed(transport: MqttTransport, topic_filter: str, probe: str) -> None:
    transport.subscribe(topic_filter)
    transport.publish(probe, b"?")
    received(transport, probe)


def test_whole_chunks_and_retained_messages_arrive(connect: Callable[..., MqttTransport]) -> None:
    sender, receiver = connect("sender"), connect("receiver")
    subscribed(receiver, "f/agents/+/down/#", "f/agents/a/down/probe")
    chunk = BlobChunk("a" * 64, 2**33, os.urandom(MAX_CHUNK_BYTES))
    sender.publish("f/agents/a/down/blob", encode_chunk(chunk), qos=0)
    assert decode_chunk(received(receiver, "f/agents/a/down/blob").payload) == chunk
    sender.publish("f/state", b"kept", retain=True)
    subscribed(sender, "f/done", "f/done")
    late = connect("late")
    late.subscribe("f/state")
    assert received(late, "f/state") == Received("f/state", b"kept", retained=True)


def test_a_newcomer_gets_nothing_that_only_others_subscribed_to(connect: Callable[..., MqttTransport]) -> None:
    other = connect("other")
    subscribed(other, "f/#", "f/probe")
    other.publish("f/secret", b"kept", retain=True)
    received(other, "f/secret")
    newcomer = connect("newcomer")
    newcomer.subscribe("g/#")
    newcomer.publish("g/probe", b"")
    assert waiting.first(newcomer, lambda event: True) == Received("g/probe", b"")


def test_the_will_of_a_client_that_vanishes_is_published_and_kept(
    broker: EmbeddedBroker, connect: Callable[..., MqttTransport]
) -> None:
    watcher = connect("watcher")
    subscribed(watcher, "f/+/state", "f/probe/state")
    dying = MqttProcess(broker.address, "dying", Will("f/a/state", b"lost"))
    dying.start()
    waiting.first(dying, lambda event: isinstance(event, Connected))
    assert dying.pid is not None
    os.kill(dying.pid, signal.SIGKILL)
    assert received(watcher, "f/a/state").payload == b"lost"
    dying.close()
    late = connect("late")
    late.subscribe("f/a/state")
    assert received(late, "f/a/state").retained


def test_a_taken_port_is_one_clear_error(broker: EmbeddedBroker) -> None:
    with pytest.raises(TransportError, match=f"{broker.address.port}.*--port"):
        EmbeddedBroker(port=broker.address.port).start()


def test_garbage_on_the_socket_disturbs_nobody(broker: EmbeddedBroker, connect: Callable[..., MqttTransport]) -> None:
    watcher = connect("watcher")
    with socket.create_connection((broker.address.host, broker.address.port)) as raw:
        raw.sendall(b"GET / HTTP/1.1\r\n\r\n" + bytes(range(256)))
    subscribed(watcher, "f/#", "f/probe")
