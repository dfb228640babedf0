"""What every transport must do, on each of them; and what only a real network can show."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import brokers
import pytest

from fleet_protocol.errors import BrokerUnreachableError
from fleet_protocol.memory import Delivery, MemoryBroker, MemoryTransport, matches
from fleet_protocol.mqtt import MqttTransport
from fleet_protocol.transport import BrokerAddress, Connected, Disconnected, Received, Transport, TransportEvent, Will

Factory = Callable[..., Transport]


@pytest.fixture(params=["memory", "mosquitto"])
def connect(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Factory]:
    """Makes started transports to one broker."""
    opened: list[Transport] = []

    def finish(transport: Transport) -> Transport:
        transport.start()
        opened.append(transport)
        assert until(transport, lambda event: isinstance(event, Connected))
        return transport

    if request.param == "memory":
        broker = MemoryBroker()
        yield lambda name, will=None: finish(broker.transport(name, will))
    else:
        with brokers.mosquitto(tmp_path) as real:
            yield lambda name, will=None: finish(MqttTransport(real.address, name, will))
            for transport in opened:
                transport.close()


def until(transport: Transport, wanted: Callable[[TransportEvent], bool], timeout_s: float = 10) -> TransportEvent:
    """The first event that is `wanted`."""
    give_up = time.monotonic() + timeout_s
    while time.monotonic() < give_up:
        event = transport.poll(0.1)
        if event is not None and wanted(event):
            return event
    raise AssertionError("the awaited event never came")


def message_on(topic: str) -> Callable[[TransportEvent], bool]:
    return lambda event: isinstance(event, Received) and event.topic == topic


class TestEveryTransport:
    def test_messages_arrive_in_order_with_their_bytes(self, connect: Factory) -> None:
        sender, receiver = connect("sender"), connect("receiver")
        receiver.subscribe("t/+/x")
        receiver.publish("t/ready/x", b"")
        until(receiver, message_on("t/ready/x"))
        sent = [bytes([i]) * (i + 1) for i in range(50)]
        for payload in sent:
            sender.publish("t/1/x", payload)
        sender.publish("t/1/y", b"not subscribed")
        sender.publish("t/2/x", b"last")
        got: list[bytes] = []
        while True:
            event = until(receiver, lambda e: isinstance(e, Received))
            assert isinstance(event, Received)
            if event.topic == "t/2/x":
                break
            got.append(event.payload)
        assert got == sent

    def test_a_late_subscriber_gets_what_was_retained_and_nothing_else(self, connect: Factory) -> None:
        sender = connect("sender")
        sender.publish("s/kept", b"1", retain=True)
        sender.publish("s/gone", b"2")
        sender.publish("s/erased", b"3", retain=True)
        sender.publish("s/erased", b"", retain=True)
        sender.subscribe("s/end")
        sender.publish("s/end", b"")
        until(sender, message_on("s/end"))
        receiver = connect("receiver")
        receiver.subscribe("s/#")
        event = until(receiver, lambda e: isinstance(e, Received))
        assert event == Received("s/kept", b"1", retained=True)
        receiver.publish("s/probe", b"")
        assert until(receiver, lambda e: isinstance(e, Received)) == Received("s/probe", b"")

    def test_a_clean_close_leaves_no_will(self, connect: Factory) -> None:
        watcher = connect("watcher")
        watcher.subscribe("w/#")
        leaving = connect("leaving", Will("w/state", b"lost"))
        leaving.publish("w/state", b"left", retain=True)
        leaving.close()
        event = until(watcher, message_on("w/state"))
        assert isinstance(event, Received)
        assert event.payload == b"left"
        watcher.publish("w/probe", b"")
        assert until(watcher, lambda e: isinstance(e, Received)) == Received("w/probe", b"")


class TestMqtt:
    def test_subscriptions_return_after_the_broker_was_killed(self, mosquitto_broker: brokers.Mosquitto) -> None:
        transport = MqttTransport(mosquitto_broker.address, "agent")
        transport.subscribe("a/#")
        transport.start()
        until(transport, lambda event: isinstance(event, Connected))
        mosquitto_broker.kill()
        until(transport, lambda event: isinstance(event, Disconnected))
        transport.publish("a/while-away", b"queued")
        mosquitto_broker.start()
        until(transport, lambda event: isinstance(event, Connected), timeout_s=30)
        event = until(transport, message_on("a/while-away"))
        assert isinstance(event, Received)
        assert event.payload == b"queued"
        transport.close()

    def test_nobody_at_the_address_is_one_clear_error(self) -> None:
        transport = MqttTransport(BrokerAddress("127.0.0.1", brokers.free_port()), "agent")
        transport.start()
        with pytest.raises(BrokerUnreachableError, match="fleetnas broker"):
            transport.wait_connected(timeout_s=1)
        transport.close()


class TestMemory:
    def test_a_cut_client_leaves_its_will_and_gets_its_subscriptions_back(self) -> None:
        broker = MemoryBroker()
        watcher, agent = broker.transport("watcher"), broker.transport("agent", Will("state", b"lost"))
        for transport, topic_filter in ((watcher, "state"), (agent, "task")):
            transport.subscribe(topic_filter)
            transport.start()
        broker.cut("agent")
        watcher.publish("task", b"dropped")
        agent.publish("state", b"queued")
        broker.restore(agent)
        watcher.publish("task", b"seen")
        assert drain(agent) == [Connected(), Disconnected("connection cut"), Connected(), Received("task", b"seen")]
        agent.publish("state", b"back")
        assert [e.payload for e in drain(watcher) if isinstance(e, Received)] == [b"lost", b"queued", b"back"]

    def test_a_fault_decides_what_is_delivered(self) -> None:
        def twice_but_never_secrets(delivery: Delivery) -> list[Delivery]:
            return [] if delivery.message.payload == b"secret" else [delivery, delivery]

        broker = MemoryBroker(twice_but_never_secrets)
        client = broker.transport("c")
        client.subscribe("#")
        client.start()
        client.publish("t", b"secret")
        client.publish("t", b"x")
        assert drain(client)[1:] == [Received("t", b"x"), Received("t", b"x")]

    @pytest.mark.parametrize(
        ("topic_filter", "topic", "expected"),
        [
            ("a/+/c", "a/b/c", True),
            ("a/+/c", "a/b/c/d", False),
            ("a/#", "a/b/c", True),
            ("a/#", "a", True),
            ("#", "x/y", True),
            ("a/+", "a", False),
            ("a", "b", False),
        ],
    )
    def test_filters_match_as_mqtt_says(self, topic_filter: str, topic: str, expected: bool) -> None:
        assert matches(topic_filter, topic) is expected


def drain(transport: MemoryTransport) -> list[TransportEvent]:
    events = []
    while (event := transport.poll(0)) is not None:
        events.append(event)
    return events
