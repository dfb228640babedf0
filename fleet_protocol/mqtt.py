"""The transport over MQTT 3.1.1, on paho-mqtt 2.

paho's network thread only enqueues; its result codes become our events and errors in this file and nowhere else.
"""

from __future__ import annotations

import contextlib
import queue
import random
import threading
import time

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from fleet_protocol.errors import BrokerUnreachableError, TransportError
from fleet_protocol.tls import TlsContext
from fleet_protocol.transport import (
    BrokerAddress,
    Connected,
    Disconnected,
    Received,
    TransportEvent,
    Will,
)

KEEPALIVE_S = 30
#: Events that may wait to be polled, and messages that may wait to be sent.
MAX_QUEUED_EVENTS = 10_000
MAX_QUEUED_MESSAGES = 5_000
_FLUSH_ON_CLOSE_S = 3.0
#: CONNACK refusals that no retry cures.
_FATAL_REFUSALS = frozenset(
    {"Unsupported protocol version", "Client identifier not valid", "Bad user name or password", "Not authorized"}
)


class MqttTransport:
    """A connection to a real broker; a `fleet_protocol.transport.Transport`."""

    def __init__(self, address: BrokerAddress, client_id: str, will: Will | None = None) -> None:
        self.address = address
        self._events: queue.Queue[TransportEvent] = queue.Queue(MAX_QUEUED_EVENTS)
        self._filters: dict[str, int] = {}
        self._lock = threading.Lock()
        self._last: paho.MQTTMessageInfo | None = None
        client = paho.Client(
            CallbackAPIVersion.VERSION2, client_id=client_id, clean_session=True, protocol=paho.MQTTv311
        )
        client.max_queued_messages_set(MAX_QUEUED_MESSAGES)
        client.max_inflight_messages_set(100)
        # A fleet that lost its broker must not come back in step.
        client.reconnect_delay_set(min_delay=1, max_delay=random.randint(20, 60))
        if address.username is not None:
            client.username_pw_set(address.username, address.password)
        self._tls: TlsContext | None = None
        if address.uses_tls:
            self._tls = TlsContext.of(address)
            client.tls_set_context(self._tls)
        if will is not None:
            client.will_set(will.topic, will.payload, qos=1, retain=True)
        client.on_connect = self._on_connect
        client.on_connect_fail = self._on_connect_fail
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        self._client = client

    # -- the owner's thread ------------------------------------------------------------------------------------

    def start(self) -> None:
        self._client.connect_async(self.address.host, self.address.port, keepalive=KEEPALIVE_S)
        self._client.loop_start()

    def subscribe(self, topic_filter: str, qos: int = 1) -> None:
        with self._lock:
            self._filters[topic_filter] = qos
            if self._client.is_connected():
                self._client.subscribe(topic_filter, qos)

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> None:
        info = self._client.publish(topic, payload, qos=qos, retain=retain)
        if info.rc == paho.MQTT_ERR_QUEUE_SIZE:
            raise TransportError(
                f"the queue to broker {self.address} holds {MAX_QUEUED_MESSAGES} unsent messages and takes no more; "
                "check the network, then try again"
            )
        self._last = info

    def poll(self, timeout_s: float) -> TransportEvent | None:
        try:
            return self._events.get(timeout=timeout_s) if timeout_s > 0 else self._events.get_nowait()
        except queue.Empty:
            return None

    def wait_connected(self, timeout_s: float) -> None:
        """Block until connected; `BrokerUnreachableError` with the last reason after `timeout_s`.

        Call it right after `start`, before anything is polled; `Connected` is still delivered by `poll`.
        """
        give_up = time.monotonic() + timeout_s
        reason = "no answer"
        while (left := give_up - time.monotonic()) > 0:
            event = self.poll(left)
            if isinstance(event, Connected):
                # Put back: nothing else was received yet, since messages only follow a connection.
                self._put(event)
                return
            if isinstance(event, Disconnected):
                reason = event.reason
                if event.fatal:
                    break
        raise BrokerUnreachableError(
            f"broker {self.address} cannot be reached: {reason}; check that it runs (`fleetnas broker`), the address, "
            "the port, the login and any firewall"
        )

    def close(self) -> None:
        # paho disconnects without waiting for acknowledgements; the last message's stands for all before it.
        if self._last is not None and self._client.is_connected():
            with contextlib.suppress(ValueError, RuntimeError):
                self._last.wait_for_publish(_FLUSH_ON_CLOSE_S)
        self._client.disconnect()
        self._client.loop_stop()

    # -- paho's thread -----------------------------------------------------------------------------------------

    def _put(self, event: TransportEvent) -> None:
        # A full queue means that the owner stopped polling; QoS 1 state is rebuilt by `Next` after a reconnect.
        with contextlib.suppress(queue.Full):
            self._events.put_nowait(event)

    def _on_connect(
        self, client: paho.Client, _: object, __: paho.ConnectFlags, reason: ReasonCode, ___: Properties | None
    ) -> None:
        if reason.is_failure:
            self._put(Disconnected(f"refused: {reason}", fatal=str(reason) in _FATAL_REFUSALS))
            return
        with self._lock:
            if self._filters:
                client.subscribe(list(self._filters.items()))
        self._put(Connected())

    def _on_connect_fail(self, _: paho.Client, __: object) -> None:
        refused = self._tls.take_refusal() if self._tls is not None else None
        self._put(Disconnected(refused or "nothing answers at that address"))

    def _on_disconnect(
        self, _: paho.Client, __: object, ___: paho.DisconnectFlags, reason: ReasonCode, ____: Properties | None
    ) -> None:
        self._put(Disconnected(str(reason)))

    def _on_message(self, _: paho.Client, __: object, message: paho.MQTTMessage) -> None:
        self._put(Received(message.topic, bytes(message.payload), bool(message.retain)))
