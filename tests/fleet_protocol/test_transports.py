"""What every transport must do, on each of them; and what only a real network can show."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rigs import brokers, waiting

from fleetnas.fleet_protocol.errors import BrokerUnreachableError, TransportError
from fleetnas.fleet_protocol.transports import mqtt
from fleetnas.fleet_protocol.transports.base import (
    BrokerAddress,
    Connected,
    Disconnected,
    Received,
    Transport,
    TransportEvent,
    Will,
)
from fleetnas.fleet_protocol.transports.memory import Delivery, MemoryBroker, MemoryTransport, matches
from fleetnas.fleet_protocol.transports.mqtt import MAX_QUEUED_MESSAGES, MqttTransport
from fleetnas.fleet_protocol.transports.mqtt_process import MAX_IN_PIPE, MqttProcess

Factory = Callable[..., Transport]


@pytest.fixture(params=["memory", "mosquitto", "process"])
def connect(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Factory]:
    """Makes started transports to one broker."""
    opened: list[Transport] = []

    def finish(transport: Transport) -> Transport:
        transport.start()
        opened.append(transport)
        assert waiting.first(transport, lambda event: isinstance(event, Connected))
        return transport

    if request.param == "memory":
        broker = MemoryBroker()
        yield lambda name, will=None: finish(broker.transport(name, will))
    else:
        with brokers.mosquitto(tmp_path) as real:
            kind = MqttTransport if request.param == "mosquitto" else MqttProcess
            yield lambda name, will=None: finish(kind(real.address, name, will))
            for transport in opened:
                transport.close()


def message_on(topic: str) -> Callable[[TransportEvent], bool]:
    return lambda event: isinstance(event, Received) and event.topic == topic


class TestEveryTransport:
    def test_messages_arrive_in_order_with_their_bytes(self, connect: Factory) -> None:
        sender, receiver = connect("sender"), connect("receiver")
        receiver.subscribe("t/+/x")
        receiver.publish("t/ready/x", b"")
        waiting.first(receiver, message_on("t/ready/x"))
        sent = [bytes([i]) * (i + 1) for i in range(50)]
        for payload in sent:
            sender.publish("t/1/x", payload)
        sender.publish("t/1/y", b"not subscribed")
        sender.publish("t/2/x", b"last")
        got: list[bytes] = []
        while True:
            event = waiting.first(receiver, lambda e: isinstance(e, Received))
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
        waiting.first(sender, message_on("s/end"))
        receiver = connect("receiver")
        receiver.subscribe("s/#")
        event = waiting.first(receiver, lambda e: isinstance(e, Received))
        assert event == Received("s/kept", b"1", retained=True)
        receiver.publish("s/probe", b"")
        assert waiting.first(receiver, lambda e: isinstance(e, Received)) == Received("s/probe", b"")

    def test_a_clean_close_leaves_no_will(self, connect: Factory) -> None:
        watcher = connect("watcher")
        watcher.subscribe("w/#")
        leaving = connect("leaving", Will("w/state", b"lost"))
        leaving.publish("w/state", b"left", retain=True)
        leaving.close()
        event = waiting.first(watcher, message_on("w/state"))
        assert isinstance(event, Received)
        assert event.payload == b"left"
        watcher.publish("w/probe", b"")
        assert waiting.first(watcher, lambda e: isinstance(e, Received)) == Received("w/probe", b"")

    def test_a_filter_that_is_taken_back_brings_no_more_messages(self, connect: Factory) -> None:
        sender, receiver = connect("sender"), connect("receiver")
        for topic_filter in ("u/+", "v"):
            receiver.subscribe(topic_filter)
        receiver.publish("u/before", b"")
        waiting.first(receiver, message_on("u/before"))
        receiver.unsubscribe("u/+")
        receiver.unsubscribe("never/subscribed")
        receiver.publish("v", b"taken back")
        waiting.first(receiver, message_on("v"))
        sender.publish("u/after", b"")
        sender.publish("v", b"still there")
        assert waiting.first(receiver, lambda e: isinstance(e, Received)) == Received("v", b"still there")
        receiver.subscribe("u/+")
        receiver.publish("u/again", b"")
        assert waiting.first(receiver, lambda e: isinstance(e, Received)) == Received("u/again", b"")

    def test_a_renewed_connection_has_the_same_filters_and_leaves_no_will(self, connect: Factory) -> None:
        watcher, owner = connect("watcher"), connect("owner", Will("w/state", b"lost"))
        watcher.subscribe("w/#")
        for number in range(20):
            owner.subscribe(f"r/{number}")
        owner.subscribe("r/other")
        owner.unsubscribe("r/other")
        for _ in range(3):
            owner.renew()
            assert waiting.first(owner, lambda e: not isinstance(e, Received)) == Connected()
        owner.publish("w/probe", b"sent")
        assert waiting.first(watcher, lambda e: isinstance(e, Received)) == Received("w/probe", b"sent")
        watcher.publish("r/other", b"")
        for number in range(20):
            watcher.publish(f"r/{number}", b"x")
        got = [waiting.first(owner, lambda e: isinstance(e, Received)) for _ in range(20)]
        assert got == [Received(f"r/{number}", b"x") for number in range(20)]


class TestMqtt:
    def test_messages_that_wait_at_the_broker_are_gone_with_the_old_connection(
        self, mosquitto_broker: brokers.Mosquitto, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(mqtt, "MAX_QUEUED_EVENTS", 5)
        sender, owner = (MqttTransport(mosquitto_broker.address, name) for name in ("sender", "owner"))
        owner.subscribe("q")
        for transport in (owner, sender):
            transport.start()
            waiting.first(transport, lambda event: isinstance(event, Connected))
        sender.subscribe("q")
        for number in range(500):  # mosquitto keeps as many as its queue holds; the owner does not poll
            sender.publish("q", str(number).encode())
        for _ in range(500):
            waiting.first(sender, message_on("q"))
        sender.publish("s", b"kept, retained", retain=True)
        owner.subscribe("s")
        owner.renew()  # though its queue is full
        events = []
        while not (events and isinstance(events[-1], Received) and events[-1].topic == "s"):
            events.append(waiting.first(owner, lambda event: True))
        assert sum(isinstance(event, Received) and event.topic == "q" for event in events) < 100
        assert Connected() in events
        for transport in (owner, sender):
            transport.close()

    def test_subscriptions_return_after_the_broker_was_killed(self, mosquitto_broker: brokers.Mosquitto) -> None:
        transport = MqttTransport(mosquitto_broker.address, "agent")
        transport.subscribe("a/#")
        transport.start()
        waiting.first(transport, lambda event: isinstance(event, Connected))
        mosquitto_broker.kill()
        waiting.first(transport, lambda event: isinstance(event, Disconnected))
        transport.publish("a/while-away", b"queued")
        mosquitto_broker.start()
        waiting.first(transport, lambda event: isinstance(event, Connected))
        event = waiting.first(transport, message_on("a/while-away"))
        assert isinstance(event, Received)
        assert event.payload == b"queued"
        transport.close()

    def test_nobody_at_the_address_is_one_clear_error(self) -> None:
        transport = MqttTransport(BrokerAddress("127.0.0.1", brokers.free_port()), "agent")
        transport.start()
        with pytest.raises(BrokerUnreachableError, match="fleetnas broker"):
            transport.wait_connected(timeout_s=1)
        transport.close()


#: An owner that says who its child is and then computes for ever.
OWNER = """
import sys
from fleetnas.fleet_protocol.transports.mqtt_process import MqttProcess
from fleetnas.fleet_protocol.transports.base import BrokerAddress, Will
transport = MqttProcess(BrokerAddress.parse(sys.argv[1]), "owner", Will("w/state", b"lost"))
transport.start()
transport.wait_connected(120)
print(transport.pid, flush=True)
while True:
    pass
"""


def is_alive(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


class TestNetworkProcess:
    def test_a_killed_child_is_a_lost_connection(self, mosquitto_broker: brokers.Mosquitto) -> None:
        transport = MqttProcess(mosquitto_broker.address, "owner", Will("w/state", b"lost"), prefer_five=True)
        transport.subscribe("a/#")
        transport.subscribe("w/#")
        transport.start()
        waiting.first(transport, lambda event: isinstance(event, Connected))
        assert transport.can_share
        assert transport.pid is not None
        os.kill(transport.pid, signal.SIGKILL)
        waiting.first(transport, lambda event: isinstance(event, Disconnected))
        waiting.first(transport, lambda event: isinstance(event, Connected))
        assert waiting.first(transport, message_on("w/state")) == Received("w/state", b"lost", retained=True)
        transport.publish("a/again", b"here")
        waiting.first(transport, message_on("a/again"))
        transport.close()

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    def test_signals_are_the_owners(self, mosquitto_broker: brokers.Mosquitto, number: int) -> None:
        transport = MqttProcess(mosquitto_broker.address, "owner")
        transport.subscribe("a/#")
        transport.start()
        waiting.first(transport, lambda event: isinstance(event, Connected))
        assert transport.pid is not None
        assert os.getsid(transport.pid) == transport.pid, "what a terminal sends to its session does not reach it"
        os.kill(transport.pid, number)
        transport.publish("a/last", b"word")
        assert waiting.first(transport, lambda event: True) == Received("a/last", b"word")
        transport.close()

    def test_children_that_are_killed_before_they_speak_are_replaced(self, mosquitto_broker: brokers.Mosquitto) -> None:
        transport = MqttProcess(mosquitto_broker.address, "owner")
        transport.start()
        for _ in range(3):
            assert transport.pid is not None
            os.kill(transport.pid, signal.SIGKILL)
            waiting.first(transport, lambda event: isinstance(event, Disconnected))
        waiting.first(transport, lambda event: isinstance(event, Connected))
        transport.close()

    def test_nothing_is_imported_from_the_folder_it_is_started_in(
        self, mosquitto_broker: brokers.Mosquitto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "queue.py").write_text("raise SystemExit('somebody else's code')")
        monkeypatch.chdir(tmp_path)
        transport = MqttProcess(mosquitto_broker.address, "owner")
        transport.start()
        transport.wait_connected(waiting.STALL_S)
        transport.close()

    def test_with_its_owner_it_vanishes_and_the_will_is_published(self, mosquitto_broker: brokers.Mosquitto) -> None:
        watcher = MqttTransport(mosquitto_broker.address, "watcher")
        watcher.subscribe("w/#")
        watcher.start()
        command = [sys.executable, "-c", OWNER, str(mosquitto_broker.address)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
            assert owner.stdout is not None
            child = int(waiting.line(owner))
            owner.kill()
        event = waiting.first(watcher, message_on("w/state"))
        assert isinstance(event, Received)
        assert event.payload == b"lost"
        waiting.until(lambda: not is_alive(child))
        watcher.close()

    def test_what_no_broker_takes_is_refused_before_it_fills_the_memory(self) -> None:
        transport = MqttProcess(BrokerAddress("127.0.0.1", brokers.free_port()), "owner")
        transport.start()
        refusals = []
        for _ in range(MAX_QUEUED_MESSAGES + 3 * MAX_IN_PIPE):
            try:
                transport.publish("t", b"x")
            except TransportError as error:  # noqa: PERF203 - the next may be taken
                refusals.append(str(error))
        assert len(refusals) >= MAX_IN_PIPE
        assert "is full" in refusals[0]
        transport.close()

    def test_every_message_of_many_arrives_in_order(self, mosquitto_broker: brokers.Mosquitto) -> None:
        transport = MqttProcess(mosquitto_broker.address, "owner")
        transport.subscribe("n/#")
        transport.start()
        waiting.first(transport, lambda event: isinstance(event, Connected))
        sent, received = 0, []
        while len(received) < 3 * MAX_IN_PIPE:
            while sent < min(len(received) + 500, 3 * MAX_IN_PIPE):  # fewer than mosquitto drops
                transport.publish("n/x", str(sent).encode())
                sent += 1
            event = waiting.first(transport, lambda event: isinstance(event, Received))
            assert isinstance(event, Received)
            received.append(int(event.payload))
        assert received == list(range(3 * MAX_IN_PIPE))
        transport.close()

    def test_messages_of_a_block_arrive_with_it_and_in_order(self, mosquitto_broker: brokers.Mosquitto) -> None:
        sender = MqttProcess(mosquitto_broker.address, "sender")
        receiver = MqttTransport(mosquitto_broker.address, "receiver")
        for transport in (sender, receiver):
            transport.start()
            waiting.first(transport, lambda event: isinstance(event, Connected))
        receiver.subscribe("t/#")
        receiver.publish("t/ready", b"")
        waiting.first(receiver, message_on("t/ready"))
        sent = [f"{number}".encode() for number in range(450)]
        with contextlib.suppress(ZeroDivisionError), sender.together():
            for payload in sent:
                sender.publish("t/1", payload)
            raise ZeroDivisionError
        sender.publish("t/1", b"after it")  # neither lost nor held back
        got = []
        for _ in range(451):
            event = waiting.first(receiver, lambda event: isinstance(event, Received))
            assert isinstance(event, Received)
            got.append(event.payload)
        assert got == [*sent, b"after it"]
        for transport in (sender, receiver):
            transport.close()

    def test_nobody_at_the_address_is_one_clear_error(self) -> None:
        transport = MqttProcess(BrokerAddress("127.0.0.1", brokers.free_port()), "owner")
        transport.start()
        with pytest.raises(BrokerUnreachableError, match="nothing answers"):
            transport.wait_connected(timeout_s=1.5)
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
        broker.attach(agent)
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
