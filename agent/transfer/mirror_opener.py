"""Open connections to mirrors: redirects and addresses are checked, so that no mirror reaches this device's network.

A mirror is named by a task or by a person; the hosts that it redirects to are named by nobody. Those must not be this
device, nor a host that only this device's own network can reach.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import socket
import ssl
import urllib.request
from collections.abc import Callable, Collection
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from fleetnas.device_profiles.plain_text import plain

#: Called with the host and each connection that was just made to it.
OnConnect: TypeAlias = Callable[[str, socket.socket], None]


def make_opener(
    mirror: str, objection: Callable[[str], str], context: ssl.SSLContext, on_connect: OnConnect
) -> urllib.request.OpenerDirector:
    """Return an opener for a mirror's URLs.

    `objection` tells why a URL may not be requested, or nothing; opening raises `RefusedRedirectError` for a redirect
    that it objects to, or that leads to an internal address. `on_connect` is called before anything is sent.
    """
    named = _named_hosts(mirror)

    def connected(host: str, connection: socket.socket) -> None:
        on_connect(host, connection)
        # A name may resolve to any address, whatever it resolved to a moment ago.
        _refuse_internal(host, connection.getpeername()[0], named)

    return urllib.request.build_opener(*_handlers(context, connected), _CheckedRedirects(objection, named))


def is_loopback(host: str) -> bool:
    """Whether a host is this device, by its name or address alone."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


class RefusedRedirectError(Exception):
    """A redirect leads to an address that must not be requested."""


class _CheckedRedirects(urllib.request.HTTPRedirectHandler):
    """Refuses redirects to URLs that may not be requested, to this device and to its own network."""

    def __init__(self, objection: Callable[[str], str], named: Collection[str]) -> None:
        self._objection, self._named = objection, named

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        """Return the next request; `RefusedRedirectError` if it must not be made."""
        objection = self._objection(newurl)
        if objection:
            raise RefusedRedirectError(f"it redirects to {plain(newurl[:100])}: {objection}")
        host = urlsplit(newurl).hostname or ""
        _refuse_internal(host, host, self._named)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _handlers(context: ssl.SSLContext, on_connect: OnConnect) -> tuple[urllib.request.BaseHandler, ...]:
    class PlainConnection(http.client.HTTPConnection):
        def connect(self) -> None:
            """Connect, then call `on_connect` before anything is sent."""
            super().connect()
            on_connect(self.host, self.sock)

    class SecureConnection(http.client.HTTPSConnection, PlainConnection):
        """A connection whose TLS begins after `on_connect`."""

    class Plain(urllib.request.HTTPHandler):
        def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
            """Open a plain connection."""
            return self.do_open(PlainConnection, req)

    class Secure(urllib.request.HTTPSHandler):
        def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
            """Open a TLS connection."""
            return self.do_open(SecureConnection, req, context=context)

    return Plain(), Secure(context=context)


def _named_hosts(mirror: str) -> frozenset[str]:
    """The hosts that were named: the mirror's, and those of this device's proxies."""
    proxies = [proxy if "//" in proxy else f"//{proxy}" for proxy in urllib.request.getproxies().values()]
    return frozenset(_plain_host(urlsplit(url).hostname or "") for url in (mirror, *proxies))


def _plain_host(host: str) -> str:
    return host.lower().rstrip(".")


def _refuse_internal(host: str, address: str, named: Collection[str]) -> None:
    """Raise `RefusedRedirectError` if `address`, which may be a name, is internal and `host` is not one of `named`.

    Internal is this device, and every address that only its own network can reach.
    """
    if _plain_host(host) in named:
        return
    internal = _plain_host(address) == "localhost"
    with contextlib.suppress(ValueError):
        found: ipaddress.IPv4Address | ipaddress.IPv6Address = ipaddress.ip_address(address)
        if isinstance(found, ipaddress.IPv6Address):
            found = found.ipv4_mapped or found
        internal = found.is_multicast or not found.is_global
    if internal:
        raise RefusedRedirectError(
            f"it redirects to {plain(host[:100])}, which is this device or in its own network; name that host as the "
            "mirror instead"
        )
