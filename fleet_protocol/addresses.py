"""Read and write network addresses: a host's name, an IPv4 or an IPv6 address, with or without a port."""

from __future__ import annotations

import ipaddress
import re

from fleetnas.fleet_protocol.errors import UsageError

#: Characters that no host name holds: white space, control characters, and the separators of addresses and URLs.
_NOT_IN_A_NAME = re.compile(r"[\s\x00-\x1f\x7f/\\@?#%:,;\[\]]")
_LONGEST_NAME = 253


def host_and_port(host: str, port: int) -> str:
    """Return `host:port`, with an IPv6 address in brackets to separate it from the port."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def check_host(text: str) -> str:
    """Return a host's name or address, an IPv6 address without brackets; `UsageError` if it is neither."""
    try:
        host, port = split_address(text.strip())
        if port is not None:
            raise ValueError(port)
        return checked_host(host)
    except ValueError:
        raise UsageError(
            f"host {text!r} is neither a name nor an address, such as broker.example, 192.168.1.10 or fd00::10; "
            "leave out scheme, port and path"
        ) from None


def split_address(text: str) -> tuple[str, str | None]:
    """Return host and port, None without one; `ValueError` if brackets or digits are wrong."""
    if _is_ipv6(text):
        return text, None  # without brackets, a port cannot be told from the address
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or not _is_ipv6(host) or (rest and rest[0] != ":"):
            raise ValueError(text)
        port = rest[1:] if rest else None
    else:
        host, colon, after = text.rpartition(":")
        host, port = (host, after) if colon else (text, None)
        if ":" in host:  # an IPv6 address and a port without brackets: ambiguous
            raise ValueError(text)
    if port is not None and not re.fullmatch(r"[0-9]{1,5}", port):
        raise ValueError(port)
    return host, port


def checked_host(host: str) -> str:
    """Return `host` unchanged; `ValueError` if the resolver cannot accept it."""
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
