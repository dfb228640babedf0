"""Addresses of this machine under which devices of its network can reach it."""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import socket
import struct
from collections.abc import Sequence

_EVERY_INTERFACE = ("", "0.0.0.0", "::")
#: SIOCGIFADDR of Linux: the IPv4 address of an interface.
_GET_ADDRESS = 0x8915
#: An address that no packet is sent to: connecting a datagram socket only asks for the route (RFC 5737).
_SOMEWHERE = ("192.0.2.1", 9)
#: Beginnings of the names of interfaces that lead to containers and virtual machines alone.
_VIRTUAL = ("docker", "br-", "veth", "virbr", "lxc", "cni", "flannel", "podman", "tailscale")


def is_loopback(host: str) -> bool:
    """Whether only this machine itself reaches a host of this name or address."""
    try:
        return ipaddress.ip_address(host.strip("[]").partition("%")[0]).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def addresses_for_devices(host: str) -> tuple[str, ...]:
    """Return the addresses of a server that listens on `host`, the likeliest first; empty where none can be found.

    A host that is one address, or a name, is returned as it is. Where it is every interface, the address of the
    interface with the default route is first.
    """
    host = host.strip("[]")
    if host not in _EVERY_INTERFACE:
        return (host,)
    return ordered(_routed(), _of_interfaces())


def ordered(routed: str | None, interfaces: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    """Order addresses, each once: that of the default route, then by interface, virtual and link-local ones last.

    Loopback addresses and the unspecified one are left out.
    """
    later = [(_rank(name, address), place, address) for place, (name, address) in enumerate(interfaces)]
    found = [*([routed] if routed is not None else []), *(address for _, _, address in sorted(later))]
    return tuple(dict.fromkeys(address for address in found if _is_usable(address)))


def _rank(name: str, address: str) -> int:
    return 2 if ipaddress.ip_address(address).is_link_local else 1 if name.startswith(_VIRTUAL) else 0


def _is_usable(address: str) -> bool:
    found = ipaddress.ip_address(address)
    return not (found.is_loopback or found.is_unspecified)


def _routed() -> str | None:
    """Return the address of the interface with the default route; None without one."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(_SOMEWHERE)
        return str(probe.getsockname()[0])
    return None


def _of_interfaces() -> list[tuple[str, str]]:
    """Return the IPv4 address of each interface that has one, with the interface's name."""
    found = []
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):
                request = struct.pack("256s", name.encode()[:15])
                answer = fcntl.ioctl(probe.fileno(), _GET_ADDRESS, request)
                found.append((name, socket.inet_ntoa(answer[20:24])))
    return found
