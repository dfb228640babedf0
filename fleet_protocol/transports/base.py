"""The transport seam: everything above it runs unchanged over MQTT (`mqtt`) or in memory (`memory`).

A transport only queues: its events are taken by `poll` on the owner's own thread, so no callback ever blocks the
network.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from fleetnas.fleet_protocol.addresses import checked_host, host_and_port, split_address
from fleetnas.fleet_protocol.errors import UsageError

DEFAULT_PORT = 1883
DEFAULT_TLS_PORT = 8883
#: Bytes of the messages that are taken together, so that large ones do not fill the memory.
MOST_BYTES_AT_ONCE = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Connected:
    """The broker accepted the connection and the subscriptions were sent; again after every reconnect."""


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The connection is lost; the transport reconnects by itself unless `fatal`."""

    reason: str
    fatal: bool = False


@dataclass(frozen=True, slots=True)
class Received:
    """A message on a subscribed topic."""

    topic: str
    payload: bytes = field(repr=False)
    retained: bool = False


TransportEvent: TypeAlias = Connected | Disconnected | Received


@dataclass(frozen=True, slots=True)
class Will:
    """Message that the broker publishes (QoS 1, retained) when the connection breaks."""

    topic: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class BrokerAddress:
    """Address of the broker and the login. TLS is used if `tls` is set or a certificate or key is given."""

    host: str
    port: int = DEFAULT_PORT
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    ca_file: str | None = None
    certificate_file: str | None = None
    key_file: str | None = None
    tls: bool = False
    """TLS even without files: the system's authorities are then trusted."""
    ca_pem: str | None = field(default=None, repr=False)
    """The same three as texts, from a credentials file."""
    certificate_pem: str | None = field(default=None, repr=False)
    key_pem: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.key_file is not None and self.certificate_file is None:
            raise UsageError("the key of --key-file is for a certificate; give its --certificate-file too")

    @classmethod
    def parse(cls, text: str, default_port: int | None = None) -> BrokerAddress:
        """Parse `HOST`, `HOST:PORT`, `IPv6` or `[IPv6]:PORT`, with `mqtts://` before it for TLS.

        Without a port it is `default_port`, else MQTT's own, with TLS or without. Raises `UsageError` for other texts.
        """
        scheme, found, rest = text.strip().rpartition("://")
        if "@" in rest:  # not repeated: it may hold a password
            raise UsageError(
                "a broker's address holds no login; give HOST[:PORT] alone, and the login with --username and "
                "$FLEETNAS_PASSWORD, --password-file or --credentials"
            )
        tls = scheme.lower() == "mqtts"
        try:
            if found and scheme.lower() not in ("mqtt", "mqtts"):
                raise ValueError(scheme)
            host, port = split_address(rest)
            host = checked_host(host)
            number = int(port) if port is not None else default_port or (DEFAULT_TLS_PORT if tls else DEFAULT_PORT)
            if not 0 < number < 65536:
                raise ValueError(port)
        except ValueError:
            raise UsageError(
                f"broker {text!r} is not HOST:PORT with a port from 1 to 65535, such as 192.168.1.10:1883 or "
                "[fd00::10]:1883, or mqtts://HOST[:PORT] for TLS"
            ) from None
        return cls(host, number, tls=tls)

    @property
    def uses_tls(self) -> bool:
        """Whether the connection is encrypted."""
        files = (self.ca_file, self.certificate_file, self.ca_pem, self.certificate_pem)
        return self.tls or any(file is not None for file in files)

    def __str__(self) -> str:
        """Return the text that `parse` reads; without the login."""
        return f"{'mqtts://' if self.tls else ''}{host_and_port(self.host, self.port)}"


class Transport(Protocol):
    """A connection to a broker."""

    @property
    def can_share(self) -> bool:
        """Whether the broker shares subscriptions; not known before it has accepted us."""

    def start(self) -> None:
        """Begin to connect, reconnect whenever the connection is lost; return at once."""

    def subscribe(self, topic_filter: str, qos: int = 1, *, share: str | None = None) -> None:
        """Receive messages on matching topics, from now on and after every reconnect.

        With `share`, a broker of MQTT 5 gives each message to one of the clients that subscribed under that name;
        another broker gives every message to all of them.
        """

    def unsubscribe(self, topic_filter: str, *, share: str | None = None) -> None:
        """Receive no more messages by this filter. Those that wait at the broker already still arrive."""

    def renew(self) -> None:
        """Connect anew without the messages that wait at the broker for this client; `Connected` follows.

        Messages that wait to be sent are kept, those with QoS 0 excepted. No will is published. While it is not
        connected it does nothing, because every new connection begins without waiting messages.
        """

    def publish(
        self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False, expiry_s: float | None = None
    ) -> None:
        """Queue a message; `TransportError` if the queue is full.

        Messages of QoS 1 that are queued while disconnected are sent after the reconnect, but not kept on disk. A
        broker of MQTT 5 does not deliver a message after `expiry_s` s; another broker ignores the expiry.
        """

    def poll(self, timeout_s: float) -> TransportEvent | None:
        """Return the next event, waiting up to `timeout_s`; None if there was none."""

    def close(self) -> None:
        """Send the queued messages, waiting at most a few seconds, and disconnect cleanly (no will)."""


def take_events(transport: Transport, timeout_s: float, most: int) -> list[TransportEvent]:
    """Return waiting events, at most `most` or `MOST_BYTES_AT_ONCE`; wait up to `timeout_s` for the first."""
    events, size = [], 0
    event = transport.poll(timeout_s)
    while event is not None:
        events.append(event)
        size += len(event.payload) if isinstance(event, Received) else 0
        event = transport.poll(0) if len(events) < most and size < MOST_BYTES_AT_ONCE else None
    return events
