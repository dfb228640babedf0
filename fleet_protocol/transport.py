"""The transport seam: everything above it runs unchanged over MQTT (`mqtt`) or in memory (`memory`).

A transport only queues: its events are taken by `poll` on the owner's own thread, so no callback ever blocks the
network.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from fleet_protocol.errors import UsageError

DEFAULT_PORT = 1883
DEFAULT_TLS_PORT = 8883
#: Of messages that are taken together: whoever sends large ones must not fill the memory.
MOST_BYTES_AT_ONCE = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Connected:
    """The broker accepted us and our subscriptions were sent; after every reconnect again."""


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The connection is gone; the transport keeps trying by itself unless `fatal`."""

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
    """What the broker publishes (QoS 1, retained) when we vanish."""

    topic: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class BrokerAddress:
    """Where the broker is and how to log in. TLS is spoken where `tls` is set or anything of TLS is given."""

    host: str
    port: int = DEFAULT_PORT
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    ca_file: str | None = None
    certificate_file: str | None = None
    key_file: str | None = None
    tls: bool = False
    """TLS even without files: the system's authorities then vouch for the broker."""
    ca_pem: str | None = field(default=None, repr=False)
    """The same three as texts, from a credentials file."""
    certificate_pem: str | None = field(default=None, repr=False)
    key_pem: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.key_file is not None and self.certificate_file is None:
            raise UsageError("the key of --key-file is for a certificate; give its --certificate-file too")

    @classmethod
    def parse(cls, text: str) -> BrokerAddress:
        """From `HOST`, `HOST:PORT` or `[IPv6]:PORT`, with `mqtts://` before it for TLS; `UsageError` otherwise."""
        scheme, found, rest = text.rpartition("://")
        tls = scheme == "mqtts"
        host, separator, port = rest.rpartition(":")
        if not separator or (rest.startswith("[") and rest.endswith("]")):
            host, port = rest, str(DEFAULT_TLS_PORT if tls else DEFAULT_PORT)
        host = host.removeprefix("[").removesuffix("]")
        known = not found or scheme in ("mqtt", "mqtts")
        if not known or not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise UsageError(
                f"broker {text!r} is not HOST:PORT with a port from 1 to 65535, such as 192.168.1.10:1883, or "
                "mqtts://HOST[:PORT] for TLS"
            )
        return cls(host, int(port), tls=tls)

    @property
    def uses_tls(self) -> bool:
        """Whether the connection is encrypted."""
        files = (self.ca_file, self.certificate_file, self.ca_pem, self.certificate_pem)
        return self.tls or any(file is not None for file in files)

    def __str__(self) -> str:
        """What `parse` reads; without the login."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'mqtts://' if self.tls else ''}{host}:{self.port}"


class Transport(Protocol):
    """A connection to a broker."""

    @property
    def can_share(self) -> bool:
        """Whether the broker shares subscriptions; not known before it has accepted us."""

    def start(self) -> None:
        """Begin to connect, and to reconnect whenever the connection is lost; returns at once."""

    def subscribe(self, topic_filter: str, qos: int = 1, *, share: str | None = None) -> None:
        """Receive what matches, from now on and after every reconnect.

        With `share`, each message goes to one of those who subscribed under that name, where the broker can do that
        (MQTT 5); another gives every message to all of them.
        """

    def publish(
        self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False, expiry_s: float | None = None
    ) -> None:
        """Queue a message; `TransportError` when the queue is full. QoS 1 while disconnected is sent on reconnect
        only as far as the queue lasts: durability is the caller's. A broker that can (MQTT 5) does not deliver it
        any more after `expiry_s`; another delivers it whenever it may."""

    def poll(self, timeout_s: float) -> TransportEvent | None:
        """The next event, waiting up to `timeout_s`; None where there was none."""

    def close(self) -> None:
        """Disconnect cleanly (no will) after what is queued was sent, waiting at most a few seconds."""


def take_events(transport: Transport, timeout_s: float, most: int) -> list[TransportEvent]:
    """Up to `most` events that are there, or `MOST_BYTES_AT_ONCE`, waiting up to `timeout_s` for the first."""
    events, size = [], 0
    event = transport.poll(timeout_s)
    while event is not None:
        events.append(event)
        size += len(event.payload) if isinstance(event, Received) else 0
        event = transport.poll(0) if len(events) < most and size < MOST_BYTES_AT_ONCE else None
    return events
