"""Transport over MQTT on paho-mqtt 2: version 3.1.1, or 5 if it is preferred and the broker speaks it.

The network thread of paho only enqueues; its result codes become our events and errors in this module alone.
"""

from __future__ import annotations

import contextlib
import os
import queue
import random
import socket
import threading
import time
from collections.abc import Callable
from functools import lru_cache

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from fleetnas.fleet_protocol.errors import BrokerUnreachableError, TransportError
from fleetnas.fleet_protocol.transports.base import (
    BrokerAddress,
    Connected,
    Disconnected,
    Received,
    TransportEvent,
    Will,
)
from fleetnas.fleet_protocol.transports.tls import TlsContext

KEEPALIVE_S = 30
#: Events that may wait to be polled; an event with a payload counts once more per `EVENT_BYTES` bytes.
MAX_QUEUED_EVENTS, EVENT_BYTES = 10_000, 2048
#: Messages that may wait to be sent.
MAX_QUEUED_MESSAGES = 5_000
#: Messages that wait for the broker's acknowledgement; also the most that paho reads before it writes.
MAX_INFLIGHT_MESSAGES = 1_000
#: Filters in one packet: AWS IoT Core takes no more.
MAX_FILTERS_AT_ONCE = 8
_FLUSH_ON_CLOSE_S = 3.0
#: How often paho's thread checks, while it waits for its owner to poll, whether the transport was closed.
_LOOK_S = 0.1
#: The first wait before a new attempt, drawn at random per client, so that a fleet does not reconnect all at once.
FIRST_WAIT_MS = (1_000, 6_000)
_LAST_WAIT_S = (20, 60)
#: After this many connections that end without an answer, the broker does not speak MQTT 5.
_UNANSWERED_FIVE = 2
#: Some brokers take the will of MQTT 5 for half a packet of 3.1.1, and wait for the rest without an answer.
_FIVE_ANSWER_S = 2.0
_UNSUPPORTED = "Unsupported protocol version"
#: CONNACK errors that no retry cures.
_FATAL_ERRORS = frozenset({_UNSUPPORTED, "Client identifier not valid", "Bad user name or password", "Not authorized"})


@lru_cache(maxsize=64)
def _expiry(seconds: int) -> Properties:
    """Return properties with an expiry; cached, because making them takes longer than sending a message."""
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    properties.MessageExpiryInterval = seconds
    return properties


def first_connection(
    poll: Callable[[float], TransportEvent | None], address: BrokerAddress, timeout_s: float
) -> Connected:
    """Poll until connected; `BrokerUnreachableError` with the last reason after `timeout_s` s."""
    give_up = time.monotonic() + timeout_s
    reason = "no answer"
    while (left := give_up - time.monotonic()) > 0:
        event = poll(left)
        if isinstance(event, Connected):
            return event
        if isinstance(event, Disconnected):
            reason = event.reason
            if event.fatal:
                break
    raise BrokerUnreachableError(
        f"broker {address} cannot be reached: {reason}; check that it runs (`fleetnas broker`), the address, "
        "the port, the login and any firewall"
    )


class _FallBack:
    """Event of paho's thread: the owner's thread shall make a client of version 3.1.1."""


class _EventQueue(queue.Queue["TransportEvent | _FallBack"]):
    """Counts an event once, and once more for every `EVENT_BYTES` of its payload."""

    def _init(self, maxsize: int) -> None:
        super()._init(maxsize)
        self._weight = 0

    def _qsize(self) -> int:
        return self._weight

    def _put(self, item: TransportEvent | _FallBack) -> None:
        super()._put(item)
        self._weight += _weight(item)

    def _get(self) -> TransportEvent | _FallBack:
        item: TransportEvent | _FallBack = super()._get()
        self._weight -= _weight(item)
        return item


def _weight(event: TransportEvent | _FallBack) -> int:
    return 1 + len(event.payload) // EVENT_BYTES if isinstance(event, Received) else 1


def _read_to_the_end(opened: socket.socket) -> None:
    """Read until the broker has closed the connection, `_FLUSH_ON_CLOSE_S` at most; then close it."""
    give_up = time.monotonic() + _FLUSH_ON_CLOSE_S
    with opened, contextlib.suppress(OSError):
        opened.settimeout(_FLUSH_ON_CLOSE_S)
        while opened.recv(65_536) and time.monotonic() < give_up:
            pass


class MqttTransport:
    """A connection to a real broker; a `fleetnas.fleet_protocol.transports.base.Transport`."""

    def __init__(
        self,
        address: BrokerAddress,
        client_id: str,
        will: Will | None = None,
        *,
        prefer_five: bool = False,
        first_wait_ms: tuple[int, int] | None = None,
    ) -> None:
        """With `prefer_five`, try MQTT 5 first, and 3.1.1 if the broker does not speak it.

        The first wait for a new attempt is drawn from `first_wait_ms`, `FIRST_WAIT_MS` if None.
        Raises `UsageError` if TLS files cannot be used.
        """
        self.address = address
        self._client_id, self._will = client_id, will
        self._events = _EventQueue(MAX_QUEUED_EVENTS)
        self._filters: dict[tuple[str, str | None], int] = {}
        self._put_back: TransportEvent | None = None
        self._closing, self._renewing = threading.Event(), threading.Event()
        self._lock = threading.Lock()
        self._last: paho.MQTTMessageInfo | None = None
        self._tls: TlsContext | None = None
        self._answered = self._can_share = False
        self._unanswered = 0
        self._five, self._first_wait_ms = prefer_five, first_wait_ms or FIRST_WAIT_MS
        self._client = self._make_client()

    @property
    def expires_messages(self) -> bool:
        """Whether the broker honours `expiry_s`: it speaks MQTT 5."""
        return self._five and self._answered

    @property
    def can_share(self) -> bool:
        """Whether the broker shares subscriptions; False before it has accepted the connection."""
        return self._can_share

    def _make_client(self) -> paho.Client:
        if self._five:
            client = paho.Client(
                CallbackAPIVersion.VERSION2, client_id=self._client_id, protocol=MQTTProtocolVersion.MQTTv5
            )
        else:
            client = paho.Client(
                CallbackAPIVersion.VERSION2,
                client_id=self._client_id,
                clean_session=True,
                protocol=MQTTProtocolVersion.MQTTv311,
            )
        client.max_queued_messages_set(MAX_QUEUED_MESSAGES)
        client.max_inflight_messages_set(MAX_INFLIGHT_MESSAGES)
        # A fleet that lost its broker must not reconnect in step: paho doubles the first wait, which is random.
        first_s, last_s = random.randint(*self._first_wait_ms) / 1000, random.randint(*_LAST_WAIT_S)
        client.reconnect_delay_set(min_delay=first_s, max_delay=last_s)  # type: ignore[arg-type]
        if self.address.username is not None:
            client.username_pw_set(self.address.username, self.address.password)
        if self.address.uses_tls:
            self._tls = TlsContext.of(self.address)
            client.tls_set_context(self._tls)
        if self._will is not None:
            client.will_set(self._will.topic, self._will.payload, qos=1, retain=True)
        client.on_connect = self._on_connect
        client.on_connect_fail = self._on_connect_fail
        client.on_socket_open = self._on_socket_open
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        return client

    # -- the owner's thread ------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to connect, in a thread of its own; return at once."""
        # MQTT 5 has its own flag for a clean session, which counts for every connection.
        clean = True if self._five else paho.MQTT_CLEAN_START_FIRST_ONLY
        self._client.connect_async(self.address.host, self.address.port, keepalive=KEEPALIVE_S, clean_start=clean)
        self._client.loop_start()

    def _fall_back(self) -> None:
        if not self._five or self._closing.is_set():
            return
        given_up, self._five = self._client, False
        self._client = self._make_client()
        given_up.disconnect()
        given_up.loop_stop()
        self.start()

    def subscribe(self, topic_filter: str, qos: int = 1, *, share: str | None = None) -> None:
        """Receive messages on matching topics, from now on and after every reconnect."""
        with self._lock:
            self._filters[topic_filter, share] = qos
            if self._client.is_connected():
                self._client.subscribe(self._spelled(topic_filter, share), qos)

    def unsubscribe(self, topic_filter: str, *, share: str | None = None) -> None:
        """Receive no more messages by this filter. Those that wait at the broker already still arrive."""
        with self._lock:
            if self._filters.pop((topic_filter, share), None) is not None and self._client.is_connected():
                self._client.unsubscribe(self._spelled(topic_filter, share))

    def renew(self) -> None:
        """Connect anew without the messages that wait at the broker for this client; `Connected` follows."""
        if self._closing.is_set() or not self._client.is_connected():
            return
        opened = self._client.socket()
        # Kept open beside paho's: closing a socket with unread bytes resets the connection, for which the broker may
        # publish the will before it reads that the client disconnects.
        kept = socket.socket(fileno=os.dup(opened.fileno())) if opened is not None else None
        self._renewing.set()
        self._client.disconnect()  # the session is a clean one: the broker forgets it
        self._client.loop_stop()
        if kept is not None:
            _read_to_the_end(kept)
        self._renewing.clear()
        self.start()

    def _spelled(self, topic_filter: str, share: str | None) -> str:
        return f"$share/{share}/{topic_filter}" if share is not None and self._can_share else topic_filter

    def publish(
        self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False, expiry_s: float | None = None
    ) -> None:
        """Queue a message; `TransportError` if the queue is full."""
        properties = _expiry(max(1, round(expiry_s))) if expiry_s is not None and self._five else None
        info = self._client.publish(topic, payload, qos=qos, retain=retain, properties=properties)
        if info.rc == paho.MQTT_ERR_QUEUE_SIZE:
            raise TransportError(
                f"the queue to broker {self.address} holds {MAX_QUEUED_MESSAGES} unsent messages and takes no more; "
                "check the network, then try again"
            )
        self._last = info

    def poll(self, timeout_s: float) -> TransportEvent | None:
        """Return the next event, waiting up to `timeout_s`; None if there was none."""
        if self._put_back is not None:
            put_back, self._put_back = self._put_back, None
            return put_back
        try:
            event = self._events.get(timeout=timeout_s) if timeout_s > 0 else self._events.get_nowait()
        except queue.Empty:
            return None
        if isinstance(event, _FallBack):
            self._fall_back()
            return None
        return event

    def wait_connected(self, timeout_s: float) -> None:
        """Block until connected; `BrokerUnreachableError` with the last reason after `timeout_s` s.

        Call it right after `start`, before anything is polled; `Connected` is still delivered by `poll`.
        """
        self._put_back = first_connection(self.poll, self.address, timeout_s)

    def close(self) -> None:
        """Send the queued messages, waiting at most a few seconds, and disconnect cleanly (no will)."""
        self._closing.set()
        # Else paho disconnects before acknowledgements arrive; the last message's comes after all others.
        if self._last is not None and self._client.is_connected():
            with contextlib.suppress(ValueError, RuntimeError):
                self._last.wait_for_publish(_FLUSH_ON_CLOSE_S)
        self._client.disconnect()
        self._client.loop_stop()

    # -- paho's thread -----------------------------------------------------------------------------------------

    def _put(self, event: TransportEvent | _FallBack) -> None:
        # A full queue means that the owner stopped polling. Nothing is dropped: paho reads no further, and messages
        # wait at the broker. If that lasts longer than the keepalive, the broker ends the connection.
        # While the connection is renewed, its owner does not poll, and what still arrives is lost with the rest.
        while not (self._closing.is_set() or self._renewing.is_set()):
            with contextlib.suppress(queue.Full):
                self._events.put(event, timeout=_LOOK_S)
                return

    def _on_connect(
        self, client: paho.Client, _: object, __: paho.ConnectFlags, reason: ReasonCode, granted: Properties | None
    ) -> None:
        self._answered = not (self._five and str(reason) == _UNSUPPORTED)
        if not self._answered:
            self._put(_FallBack())
            return
        if reason.is_failure:
            self._put(Disconnected(f"refused: {reason}", fatal=str(reason) in _FATAL_ERRORS))
            return
        with self._lock:
            self._can_share = self._five and getattr(granted, "SharedSubscriptionAvailable", 1) == 1
            filters = [(self._spelled(*wanted), qos) for wanted, qos in self._filters.items()]
            for first in range(0, len(filters), MAX_FILTERS_AT_ONCE):
                client.subscribe(filters[first : first + MAX_FILTERS_AT_ONCE])
        self._put(Connected())

    def _on_socket_open(self, _: paho.Client, __: object, opened: object) -> None:
        assert isinstance(opened, socket.socket)
        # A small message must not wait 40 ms for the acknowledgement of the one before it.
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if not self._five:
            return
        timer = threading.Timer(_FIVE_ANSWER_S, self._expect_answer)
        timer.daemon = True
        timer.start()

    def _expect_answer(self) -> None:
        if self._five and not self._answered:
            self._put(_FallBack())

    def _on_connect_fail(self, _: paho.Client, __: object) -> None:
        refused = self._tls.take_refusal() if self._tls is not None else None
        self._put(Disconnected(refused or "nothing answers at that address"))

    def _on_disconnect(
        self, client: paho.Client, _: object, __: paho.DisconnectFlags, reason: ReasonCode, ___: Properties | None
    ) -> None:
        if client is not self._client:  # the client of MQTT 5, which was given up
            return
        if self._five and not self._answered:
            # A broker that knows only 3.1.1 may close the connection without an answer.
            self._unanswered += 1
            if self._unanswered == _UNANSWERED_FIVE:
                self._put(_FallBack())
            return
        self._put(Disconnected(str(reason)))

    def _on_message(self, _: paho.Client, __: object, message: paho.MQTTMessage) -> None:
        self._put(Received(message.topic, bytes(message.payload), bool(message.retain)))
