"""The transport seam: everything above it runs unchanged over MQTT (`mqtt`) or in memory (`memory`).

A transport only queues: its events are taken by `poll` on the owner's own thread, so no callback ever blocks the
network.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from fleetnas.fleet_protocol.errors import UsageError

DEFAULT_PORT = 1883
DEFAULT_TLS_PORT = 8883
#: Of messages that are taken together: whoever sends large ones must not fill the memory.
MOST_BYTES_AT_ONCE = 1024 * 1024
#: What no host name holds: white space, control characters, and what has a meaning in an address around it.
_NOT_IN_A_NAME = re.compile(r"[\s\x00-\x1f\x7f/\\@?#%:,;\[\]]")
_LONGEST_NAME = 253


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
    def parse(cls, text: str, default_port: int | None = None) -> BrokerAddress:
        """From `HOST`, `HOST:PORT`, `IPv6` or `[IPv6]:PORT`, with `mqtts://` before it for TLS; `UsageError` otherwise.

        Without a port it is `default_port`, else MQTT's own, with TLS or without.
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
            host, port = _split(rest)
            host = _checked_host(host)
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
        """What `parse` reads; without the login."""
        return f"{'mqtts://' if self.tls else ''}{host_and_port(self.host, self.port)}"


def host_and_port(host: str, port: int) -> str:
    """How an address is written: an IPv6 address in brackets, so that its port can be told from it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def check_host(text: str) -> str:
    """A host's name or address, an IPv6 address without brackets; `UsageError` where it is neither."""
    try:
        host, port = _split(text.strip())
        if port is not None:
            raise ValueError(port)
        return _checked_host(host)
    except ValueError:
        raise UsageError(
            f"host {text!r} is neither a name nor an address, such as broker.example, 192.168.1.10 or fd00::10; "
            "leave out scheme, port and path"
        ) from None


def _split(text: str) -> tuple[str, str | None]:
    """Host and port, if one is given; `ValueError` where brackets or digits are wrong."""
    if _is_ipv6(text):
        return text, None  # without brackets nobody can tell a port from the address
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or not _is_ipv6(host) or (rest and rest[0] != ":"):
            raise ValueError(text)
        port = rest[1:] if rest else None
    else:
        host, colon, after = text.rpartition(":")
        host, port = (host, after) if colon else (text, None)
        if ":" in host:  # an IPv6 address and a port, which could be read in two ways
            raise ValueError(text)
    if port is not None and not re.fullmatch(r"[0-9]{1,5}", port):
        raise ValueError(port)
    return host, port


def _checked_host(host: str) -> str:
    """`host` unchanged; `ValueError` where the resolver could make nothing of it."""
    if not _is_ipv6(host):
        if not host or len(host) > _LONGEST_NAME or _NOT_IN_A_NAME.search(host):
            raise ValueError(host)
        host.encode("idna")  # as `getaddrinfo` does: empty and too long labels are errors
    return host


def _is_ipv6(text: str) -> bool:
    address, percent, zone = text.partition("%")
    try:
        ipaddress.IPv6Address(address)
    except ValueError:
        return False
    return not percent or re.fullmatch(r"[A-Za-z0-9_.-]{1,32}", zone) is not None


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
