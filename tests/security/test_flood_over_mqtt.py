"""A flood through a real broker: its messages are no longer delivered, and those of others are."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rigs import brokers, waiting

from fleetnas.coordinator.app.embedded_broker import EmbeddedBroker
from fleetnas.coordinator.fleet.agent_link import AgentLink, Sharing, coordinator_will
from fleetnas.coordinator.fleet.agent_subscriptions import PAUSE_S
from fleetnas.coordinator.fleet.message_budget import MessageBudget
from fleetnas.fleet_protocol.codec import encode
from fleetnas.fleet_protocol.errors import TransportError
from fleetnas.fleet_protocol.messages import (
    Accepted,
    AgentInfo,
    AgentState,
    BlobRequest,
    Heartbeat,
    Inventory,
    TaskKey,
    TaskUpdate,
)
from fleetnas.fleet_protocol.topics import Topics, UpChannel
from fleetnas.fleet_protocol.transports.base import BrokerAddress, Connected, Received
from fleetnas.fleet_protocol.transports.mqtt import MqttTransport
from fleetnas.fleet_protocol.transports.mqtt_process import MqttProcess

TOPICS = Topics("lab")
#: A few thousand of these are far too much; fewer of them are needed than of short ones.
NOISE = b"\x00" * 8192


@pytest.fixture
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BrokerAddress]:
    if request.param == "mosquitto":
        with brokers.mosquitto(tmp_path) as real:
            yield real.address
    else:
        with EmbeddedBroker(port=0) as embedded:
            yield embedded.address


class Coordinator:
    """The coordinator's link over its real transport; its clock stands still."""

    def __init__(self, address: BrokerAddress, *, share: bool) -> None:
        self.now_s = 0.0
        self.lines: list[str] = []
        self.tasks: list[str] = []
        self.states: list[str] = []
        self.connections = self.noise = 0
        self.transport = MqttProcess(address, "coordinator", coordinator_will(TOPICS, 1), prefer_five=True)
        budget = MessageBudget(lambda: self.now_s, self.lines.append)
        sharing = Sharing("run-1") if share else None
        self.link = AgentLink(self.transport, TOPICS, 1, refused=lambda _: None, sharing=sharing, budget=budget)
        self.link.start()

    def until(self, wanted: Callable[[], bool], meanwhile: Callable[[], None] = lambda: None) -> None:
        """Take what arrives until something is so."""

        def happened() -> bool:
            meanwhile()
            event = self.transport.poll(0.02)
            while event is not None and not wanted():
                self.noise += isinstance(event, Received) and event.payload == NOISE
                self.link.receive(event, self)
                event = self.transport.poll(0)
            if event is not None:
                self.link.receive(event, self)
            self.link.on_tick()
            return wanted()

        waiting.until(happened, what=lambda: f"heard of {self.tasks}, {self.states}, and said {self.lines}")

    # -- `FleetListener`

    def on_connected(self) -> None:
        self.connections += 1
        self.link.announce("ready")

    def on_disconnected(self, reason: str, fatal: bool) -> None:
        raise AssertionError(f"the connection was lost: {reason}")

    def on_state(self, agent: str, state: AgentState, retained: bool) -> None:
        self.states.append(agent)

    def on_info(self, agent: str, info: AgentInfo, retained: bool) -> None: ...

    def on_heartbeat(self, agent: str, heartbeat: Heartbeat) -> None: ...

    def on_update(self, agent: str, update: TaskUpdate, size: int) -> None:
        self.tasks.append(agent)

    def on_inventory(self, agent: str, held: Inventory) -> None: ...

    def on_blob_request(self, agent: str, request: BlobRequest) -> None: ...


@pytest.mark.parametrize(
    ("broker", "share"),
    [("mosquitto", False), ("mosquitto", True), ("embedded", False)],
    ids=["mosquitto", "mosquitto-shared", "embedded"],
    indirect=["broker"],
)
def test_a_flooder_is_not_delivered_and_others_are(broker: BrokerAddress, share: bool) -> None:
    sender, watcher = MqttTransport(broker, "sender"), MqttTransport(broker, "watcher")
    watcher.subscribe(TOPICS.coordinator)
    for transport in (sender, watcher):
        transport.start()
        waiting.first(transport, lambda event: isinstance(event, Connected))
    coordinator = Coordinator(broker, share=share)

    def say(agent: str, channel: UpChannel = "task") -> None:
        message = Accepted(task=TaskKey(task_id="run-1.1", attempt=1))
        state = AgentState(state="ready", session=1, instance=agent)
        sender.publish(TOPICS.up(agent, channel), encode(state if channel == "state" else message))

    # Said again and again: what comes before the subscriptions is lost.
    for name in ("honest", "last"):
        coordinator.until(lambda name=name: name in coordinator.tasks, lambda name=name: say(name))

    def flood() -> None:
        with contextlib.suppress(TransportError):  # the queue to a slow broker is full; it is a flood nevertheless
            for _ in range(50):
                sender.publish(TOPICS.up("flooder", "task"), NOISE)

    coordinator.until(lambda: coordinator.link.ignored == ("flooder",), flood)
    coordinator.until(lambda: coordinator.connections == 2)
    coordinator.tasks.clear()
    coordinator.until(lambda: "honest" in coordinator.tasks, lambda: say("honest"))
    # Messages of one connection arrive in order, and nothing of the flooder's comes between two of them.
    before = coordinator.noise
    flood()
    say("flooder")
    say("last")
    coordinator.until(lambda: "last" in coordinator.tasks)
    assert ("flooder" in coordinator.tasks, coordinator.noise) == (False, before)
    coordinator.until(lambda: "new" in coordinator.states, lambda: say("new", "state"))
    coordinator.until(lambda: "new" in coordinator.tasks, lambda: say("new"))  # once its filter is there
    coordinator.now_s += PAUSE_S
    coordinator.until(lambda: "flooder" in coordinator.tasks, lambda: say("flooder"))
    assert coordinator.link.ignored == ()
    # The will was never published: nobody took the coordinator for lost.
    watcher.publish(TOPICS.coordinator, b"end")
    said = []
    while not said or said[-1] != b"end":
        event = waiting.first(watcher, lambda event: isinstance(event, Received))
        assert isinstance(event, Received)
        said.append(event.payload)
    assert [b'"lost"' in payload for payload in said] == [False] * len(said)
    coordinator.transport.close()
    for transport in (sender, watcher):
        transport.close()
