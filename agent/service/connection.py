"""Publish on one agent's topics and receive the messages that are addressed to it."""

from __future__ import annotations

import logging

from fleetnas.fleet_protocol.codec import encode
from fleetnas.fleet_protocol.errors import TransportError
from fleetnas.fleet_protocol.messages import Message
from fleetnas.fleet_protocol.topics import Address, Topics, UpChannel
from fleetnas.fleet_protocol.transports.base import Connected, Disconnected, Transport, TransportEvent

#: A message that nobody acknowledged is sent again after this time, then after twice as long, up to the maximum: some
#: brokers lose messages silently, and a coordinator may be gone for good. Seconds.
RESEND_EVERY_S = 30.0
MAX_RESEND_S = 1800.0

_log = logging.getLogger("fleetnas.agent")


class Connection:
    """One agent's connection to its broker.

    Nothing is published while the broker is not reached: the agent sends its state and its results again after the
    next connect.
    """

    def __init__(self, transport: Transport, topics: Topics, name: str) -> None:
        self._transport = transport
        self._topics = topics
        self._name = name
        self._connected = False

    @property
    def connected(self) -> bool:
        """Whether the broker is reached now."""
        return self._connected

    @property
    def fleet(self) -> str:
        """Name of the fleet."""
        return self._topics.fleet

    def start(self) -> None:
        """Subscribe to the agent's topics and begin to connect; return at once."""
        for channel in ("task", "ack"):
            self._transport.subscribe(self._topics.down(self._name, channel))
        self._transport.subscribe(self._topics.down(self._name, "blob"), qos=0)
        self._transport.subscribe(self._topics.up(self._name, "state"))
        self._transport.subscribe(self._topics.coordinator)
        self._transport.start()

    def poll(self, timeout_s: float) -> TransportEvent | None:
        """Return the next event, waiting up to `timeout_s`; None if there was none."""
        event = self._transport.poll(timeout_s)
        if isinstance(event, Connected):
            self._connected = True
        elif isinstance(event, Disconnected):
            self._connected = False
        return event

    def parse(self, topic: str) -> Address:
        """Return the channel that a topic stands for; `ProtocolError` if it is none of this fleet."""
        return self._topics.parse(topic)

    def publish(self, channel: UpChannel, message: Message, *, qos: int = 1, retain: bool = False) -> None:
        """Publish a message on one of the agent's channels."""
        self.publish_encoded(channel, encode(message), qos=qos, retain=retain)

    def publish_encoded(self, channel: UpChannel, payload: bytes, *, qos: int = 1, retain: bool = False) -> None:
        """Publish an encoded message; a message that the transport does not accept is logged and dropped."""
        if not self._connected:
            return
        try:
            self._transport.publish(self._topics.up(self._name, channel), payload, qos=qos, retain=retain)
        except TransportError as error:
            _log.warning("%s", error)

    def mute(self) -> None:
        """Publish nothing more: another agent owns the name."""
        self._connected = False

    def close(self) -> None:
        """Disconnect; messages that are queued are sent first."""
        self._transport.close()
