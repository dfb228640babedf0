"""Transport in memory: one process, no network, no threads, no clock.

Delivery is immediate and in order. A `Fault` may drop, duplicate or delay messages, and a client may be cut off and
connect again, so that every recovery path runs in tests. A campaign on one device alone uses this transport too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from fleetnas.fleet_protocol.transports.base import Connected, Disconnected, Received, TransportEvent, Will


@dataclass(frozen=True, slots=True)
class Delivery:
    """One message on its way to one client."""

    client_id: str
    message: Received


#: Returns the deliveries that happen instead of one: () drops it, two copies duplicate it.
Fault = Callable[[Delivery], Iterable[Delivery]]


def matches(topic_filter: str, topic: str) -> bool:
    """Whether an MQTT filter with `+` and a trailing `#` covers a topic."""
    wanted, found = topic_filter.split("/"), topic.split("/")
    if wanted[-1] == "#":
        wanted.pop()
        if len(found) < len(wanted):
            return False
        found = found[: len(wanted)]
    return len(wanted) == len(found) and all(w in ("+", f) for w, f in zip(wanted, found, strict=True))


class MemoryBroker:
    """A broker without a network; create one transport per client."""

    def __init__(self, fault: Fault | None = None) -> None:
        self.fault = fault
        self._clients: dict[str, MemoryTransport] = {}
        self._retained: dict[str, bytes] = {}
        self._turns: dict[tuple[str, str], int] = {}

    def transport(self, client_id: str, will: Will | None = None) -> MemoryTransport:
        """A transport for `client_id`, not yet connected."""
        return MemoryTransport(self, client_id, will)

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Give a message to every connected client that subscribed to its topic."""
        if retain:
            if payload:
                self._retained[topic] = payload
            else:
                self._retained.pop(topic, None)
        for client in list(self._clients.values()):
            if client.wants(topic):
                self.deliver(Delivery(client.client_id, Received(topic, payload)))
        for client in self._sharers(topic):
            self.deliver(Delivery(client.client_id, Received(topic, payload)))

    def _sharers(self, topic: str) -> list[MemoryTransport]:
        """For each shared filter that covers `topic`, the client whose turn it is."""
        groups: dict[tuple[str, str], list[MemoryTransport]] = {}
        for client in self._clients.values():
            for shared in client.shared_filters:
                if matches(shared[1], topic):
                    groups.setdefault(shared, []).append(client)
        for shared in groups:
            self._turns[shared] = self._turns.get(shared, 0) + 1
        return [clients[self._turns[shared] % len(clients)] for shared, clients in groups.items()]

    def deliver(self, delivery: Delivery) -> None:
        """Apply the fault to a delivery and append the result to its client's queue."""
        for item in (delivery,) if self.fault is None else self.fault(delivery):
            client = self._clients.get(item.client_id)
            if client is not None:
                client.events.append(item.message)

    def cut(self, client_id: str) -> None:
        """Lose a client's connection: its will is published, its subscriptions are forgotten."""
        client = self._clients.pop(client_id, None)
        if client is not None:
            client.events.append(Disconnected("connection cut"))
            if client.will is not None:
                self.publish(client.will.topic, client.will.payload, retain=True)

    def attach(self, client: MemoryTransport) -> None:
        """Connect a client, the first time or again; another one of its id is cut off."""
        previous = self._clients.get(client.client_id)
        if previous is not None and previous is not client:
            self.cut(client.client_id)
        self._clients[client.client_id] = client
        client.events.append(Connected())
        for topic_filter in client.filters:
            self.send_retained(client, topic_filter)

    def detach(self, client: MemoryTransport) -> None:
        """Disconnect a client without its will."""
        if self._clients.get(client.client_id) is client:
            del self._clients[client.client_id]

    def send_retained(self, client: MemoryTransport, topic_filter: str) -> None:
        """Send a client the retained messages that a filter covers."""
        for topic, payload in list(self._retained.items()):
            if matches(topic_filter, topic):
                self.deliver(Delivery(client.client_id, Received(topic, payload, retained=True)))

    def is_connected(self, client: MemoryTransport) -> bool:
        """Whether a client is connected."""
        return self._clients.get(client.client_id) is client


class MemoryTransport:
    """One client's connection to a `MemoryBroker`; a `fleetnas.fleet_protocol.transports.base.Transport`."""

    can_share = True

    def __init__(self, broker: MemoryBroker, client_id: str, will: Will | None) -> None:
        self.client_id = client_id
        self.will = will
        self.events: deque[TransportEvent] = deque()
        self.filters: list[str] = []
        self.shared_filters: list[tuple[str, str]] = []
        self._broker = broker
        self._unsent: list[tuple[str, bytes, bool]] = []

    def start(self) -> None:
        """Connect at once."""
        self._broker.attach(self)

    def subscribe(self, topic_filter: str, qos: int = 1, *, share: str | None = None) -> None:
        """Receive messages on matching topics; shared subscriptions take turns."""
        del qos
        if share is not None:
            if (share, topic_filter) not in self.shared_filters:
                self.shared_filters.append((share, topic_filter))
        elif topic_filter not in self.filters:
            self.filters.append(topic_filter)
            if self._broker.is_connected(self):
                self._broker.send_retained(self, topic_filter)

    def unsubscribe(self, topic_filter: str, *, share: str | None = None) -> None:
        """Receive no more messages by this filter."""
        if share is not None:
            self.shared_filters = [shared for shared in self.shared_filters if shared != (share, topic_filter)]
        elif topic_filter in self.filters:
            self.filters.remove(topic_filter)

    def renew(self) -> None:
        """Connect anew; the messages that wait are lost, as those that wait at a real broker are."""
        if self._broker.is_connected(self):
            self.events = deque(event for event in self.events if not isinstance(event, Received))
            self._broker.attach(self)

    def publish(
        self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False, expiry_s: float | None = None
    ) -> None:
        """Publish at once if connected; while disconnected keep QoS 1 until the next message after the reconnect."""
        del expiry_s
        if self._broker.is_connected(self):
            for waiting in self._unsent:
                self._broker.publish(waiting[0], waiting[1], retain=waiting[2])
            self._unsent.clear()
            self._broker.publish(topic, payload, retain=retain)
        elif qos > 0:
            self._unsent.append((topic, payload, retain))

    def poll(self, timeout_s: float) -> TransportEvent | None:
        """Return the next event, without waiting; None if there is none."""
        del timeout_s
        return self.events.popleft() if self.events else None

    def close(self) -> None:
        """Disconnect without the will."""
        self._broker.detach(self)

    def wants(self, topic: str) -> bool:
        """Whether one of the subscriptions covers `topic`."""
        return any(matches(topic_filter, topic) for topic_filter in self.filters)
