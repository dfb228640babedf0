"""MQTT 5 where the broker has it, 3.1.1 everywhere else; and what a fleet does to a broker that comes back."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import paho.mqtt.client as paho
import pytest
from rigs import brokers, waiting

from fleetnas.coordinator.app.embedded_broker import EmbeddedBroker
from fleetnas.fleet_protocol.transports.base import BrokerAddress, Connected, Received, Will
from fleetnas.fleet_protocol.transports.mqtt import MqttTransport


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[brokers.Mosquitto]:
    with brokers.mosquitto(tmp_path) as running:
        yield running


def connected(transport: MqttTransport) -> MqttTransport:
    transport.start()
    waiting.first(transport, lambda event: isinstance(event, Connected))
    return transport


def test_a_task_that_expired_at_the_broker_does_not_reach_its_agent(broker: brokers.Mosquitto) -> None:
    """The agent's session outlives its connection here, as a broker's queue for a slow agent does."""
    queue = paho.Client(paho.CallbackAPIVersion.VERSION2, client_id="agent", clean_session=False)
    joined = threading.Event()
    queue.on_subscribe = lambda *_: joined.set()
    queue.on_connect = lambda client, *_: client.subscribe("down/task", 1)
    queue.connect("127.0.0.1", broker.port)
    queue.loop_start()
    assert waiting.until(joined.is_set)
    queue.disconnect()
    queue.loop_stop()
    coordinator = connected(MqttTransport(broker.address, "coordinator", prefer_five=True))
    assert coordinator.expires_messages
    coordinator.publish("down/task", b"stale", expiry_s=1.0)
    coordinator.publish("down/task", b"fresh", expiry_s=600.0)
    coordinator.subscribe("clock")
    sent_s = time.monotonic()
    while time.monotonic() - sent_s < 2.5:  # the broker's own clock has to pass the first one's second
        coordinator.poll(0.2)
    got: list[bytes] = []
    last = threading.Event()

    def take(_: object, __: object, message: paho.MQTTMessage) -> None:
        got.append(message.payload)
        if message.payload == b"last":
            last.set()

    queue.on_message = take
    queue.connect("127.0.0.1", broker.port)
    queue.loop_start()
    coordinator.publish("down/task", b"last")
    assert waiting.until(last.is_set)
    queue.disconnect()
    queue.loop_stop()
    coordinator.close()
    assert got == [b"fresh", b"last"]


def test_five_and_three_hear_each_other_and_see_what_is_retained(broker: brokers.Mosquitto) -> None:
    five, three = MqttTransport(broker.address, "five", prefer_five=True), MqttTransport(broker.address, "three")
    three.subscribe("to/three")
    connected(three).publish("kept", b"state", retain=True)
    three.subscribe("probe")
    three.publish("probe", b"")
    waiting.first(three, lambda event: isinstance(event, Received))
    five.subscribe("kept")
    connected(five)
    assert waiting.first(five, lambda event: isinstance(event, Received)) == Received("kept", b"state", retained=True)
    five.publish("to/three", b"task", expiry_s=60.0)
    assert waiting.first(three, lambda event: isinstance(event, Received)) == Received("to/three", b"task")
    for transport in (five, three):
        transport.close()


@pytest.mark.parametrize("will", [None, Will("coordinator/state", b"lost")])
def test_a_broker_without_five_is_spoken_to_in_three(will: Will | None) -> None:
    with EmbeddedBroker(port=0) as embedded:
        transport = connected(MqttTransport(embedded.address, "coordinator", will, prefer_five=True))
        assert not transport.expires_messages
        transport.subscribe("t")
        transport.publish("t", b"said", expiry_s=5.0)
        assert waiting.first(transport, lambda event: isinstance(event, Received)) == Received("t", b"said")
        transport.close()


@pytest.mark.parametrize("answer", [b"\x20\x02\x00\x01", b""], ids=["refuses", "hangs up"])
def test_an_old_broker_may_refuse_five_or_hang_up(answer: bytes) -> None:
    """A server that speaks just enough 3.1.1 to accept a connection, and answers a 5 as old brokers do."""
    server = socket.create_server(("127.0.0.1", 0))
    levels: list[int] = []

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            packet = connection.recv(1000)
            levels.append(packet[packet.index(b"MQTT") + 4])
            if levels[-1] == 4:
                connection.sendall(b"\x20\x02\x00\x00")
                connection.recv(1000)
            elif answer:
                connection.sendall(answer)
            connection.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    transport = connected(MqttTransport(BrokerAddress("127.0.0.1", server.getsockname()[1]), "c", prefer_five=True))
    assert not transport.expires_messages
    assert set(levels[:-1]) == {5}
    assert levels[-1] == 4
    transport.close()
    server.close()


def test_a_thousand_agents_do_not_come_back_in_the_same_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(paho.Client, "reconnect_delay_set", lambda _, min_delay, max_delay: waits.append(min_delay))
    for number in range(300):
        MqttTransport(BrokerAddress("127.0.0.1", 1), f"agent-{number}")
    assert len(waits) == 300
    assert all(1.0 <= wait <= 6.0 for wait in waits)
    # In no tenth of a second of the first six does more than a small part of the fleet knock.
    moments = [int(10 * wait) for wait in waits]
    assert max(moments.count(moment) for moment in set(moments)) <= 0.06 * len(moments)
