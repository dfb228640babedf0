"""Who may read the pages: the names under which they are reached, the token, and what a browser may do with them."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
from collections.abc import Awaitable, Callable, Collection, Mapping, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

from fleetnas.fleet_protocol.errors import UsageError

#: Characters of a token of the user's own, at least.
LEAST_TOKEN = 16
_LOOPBACK_NAMES = ("localhost", "localhost.localdomain", "ip6-localhost")
#: Nothing is loaded from elsewhere, nothing is executed but the dashboard's own file, nobody may put it into a frame.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}

Scope = Mapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Any, Receive, Send], Awaitable[None]]
#: Makes the page of a refusal: status and text in, body out.
Refusal = Callable[[int, str], bytes]


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to an address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() in _LOOPBACK_NAMES


def new_token() -> str:
    """Return a token that nobody can guess."""
    return secrets.token_urlsafe(32)


def checked_token(text: str, source: str) -> str:
    """Return a token of the user's own; `UsageError` where it is too short, or no plain text."""
    token = text.strip()
    if len(token) < LEAST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise UsageError(
            f"{source} must hold one token of at least {LEAST_TOKEN} printable ASCII characters without blanks; it "
            f"holds {len(token)} characters: write one with `openssl rand -hex 32`"
        )
    return token


class HostRule:
    """The host names under which the pages are answered: others may be names of an attacker that lead here."""

    def __init__(self, bound: str, names: Collection[str] = ()) -> None:
        """`bound` is the address that is listened on, `names` are further host names."""
        self._names = {name.lower().strip("[]") for name in (*names, bound)} | set(_LOOPBACK_NAMES)
        self._any_address = not is_loopback(bound)

    def allows(self, header: str) -> bool:
        """Whether a Host header names this dashboard. An address cannot be another's name; a host name can."""
        host = header.strip().lower()
        host = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
        if host in self._names:
            return True
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return False
        return self._any_address or address.is_loopback


class Guard:
    """Lets requests through to the pages that may read them; an ASGI application around another."""

    def __init__(self, inner: Application, hosts: HostRule, token: str | None, port: int, refusal: Refusal) -> None:
        """With `token` every page asks for it; static files have no content of runs and do not."""
        self._inner, self._hosts, self._token, self._refusal = inner, hosts, token, refusal
        # Browsers send a cookie to every port of a host: two dashboards must not share one.
        self._cookie = f"fleetnas_dashboard_{port}"
        # The cookie proves that its owner had the token, and does not hold it.
        self._proof = "" if token is None else hmac.new(token.encode(), b"dashboard", hashlib.sha256).hexdigest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        send = _with_headers(send)
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if not self._hosts.allows(headers.get("host", "")):
            name = headers.get("host", "")[:100]
            await self._refuse(
                send,
                421,
                f"This dashboard does not answer to the host name {name!r}. Open it by its address, or start it with "
                "--allow-host NAME.",
            )
        elif scope["method"] not in ("GET", "HEAD"):
            await self._refuse(send, 405, "The dashboard only reads: use GET.", {"allow": "GET, HEAD"})
        elif self._token is None or scope["path"].startswith("/static/"):
            await self._inner(scope, receive, send)
        else:
            await self._check_token(scope, receive, send, headers.get("cookie", ""))

    async def _check_token(self, scope: Scope, receive: Receive, send: Send, cookie: str) -> None:
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        given = [value for name, value in query if name == "token"]
        if given:
            if not _equal(given[0], self._token or ""):
                await self._refuse(
                    send, 403, "The token of this link is wrong. Use the link that `fleetnas dashboard` printed last."
                )
                return
            rest = urlencode([(name, value) for name, value in query if name != "token"])
            address = quote(scope["path"]) + (f"?{rest}" if rest else "")
            proof = f"{self._cookie}={self._proof}; Path=/; HttpOnly; SameSite=Lax"
            # A path of two slashes would be the address of another host.
            location = "/" + address.lstrip("/")
            await _answer(send, 303, b"", {"location": location, "set-cookie": proof})
        elif _equal(_cookie_of(cookie, self._cookie), self._proof):
            await self._inner(scope, receive, send)
        else:
            await self._refuse(
                send,
                401,
                "This dashboard needs a token. Open the link that `fleetnas dashboard` printed when it was started: it "
                "ends with ?token=... and is needed once per browser.",
            )

    async def _refuse(self, send: Send, status: int, text: str, headers: Mapping[str, str] | None = None) -> None:
        found = {"content-type": "text/html; charset=utf-8", "cache-control": "no-store", **(headers or {})}
        await _answer(send, status, self._refusal(status, text), found)


def _equal(given: str, known: str) -> bool:
    """Compare in a time that says nothing about how much of it is right."""
    return hmac.compare_digest(given.encode(), known.encode())


def _cookie_of(header: str, name: str) -> str:
    try:
        found = SimpleCookie(header).get(name)
    except CookieError:
        return ""
    return found.value if found is not None else ""


async def _answer(send: Send, status: int, body: bytes, headers: Mapping[str, str]) -> None:
    named = {**headers, "content-length": str(len(body))}
    encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in named.items()]
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            added = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
            message = {**message, "headers": [*message.get("headers", ()), *added]}
        await send(message)

    return sending
