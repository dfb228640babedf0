"""Bundles from the mirror that a task names: resumed, verified, and given up for the broker's chunks if anything fails.

The agent asks nobody by itself: without a mirror in a task, or with `--bundle-mirrors off`, it speaks to its broker
alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import io
import ipaddress
import logging
import socket
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from fleetnas.device_profiles.plain_text import plain
from fleetnas.fleet_protocol.errors import MirrorError, UsageError
from fleetnas.fleet_protocol.messages import BlobReference
from fleetnas.fleet_protocol.mirrors import bundle_url

MirrorPolicy = Literal["off", "https", "any"]
MIRROR_POLICIES: tuple[MirrorPolicy, ...] = ("off", "https", "any")

#: A mirror that failed is not asked again for so long.
ASK_AGAIN_S = 600.0
#: How often it is asked for the rest after it broke off.
ATTEMPTS = 4
_TIMEOUT_S = 30.0
#: A mirror is given up that sends less than this over a window, and one that takes longer than at this rate in all: the
#: broker's chunks come faster.
MIN_BYTES_PER_S = 4096
WINDOW_S = 60.0
_BLOCK_BYTES = 1 << 18

_log = logging.getLogger("fleetnas.agent")


def mirror_policy(text: str | None, *, signed: bool) -> MirrorPolicy:
    """What `--bundle-mirrors` says, or without it the default; `UsageError` where it is none of the policies.

    Unless orders are `signed`, anybody who reaches the broker could name an address: then no mirror is asked.
    """
    if text is None:
        return "https" if signed else "off"
    for policy in MIRROR_POLICIES:
        if text == policy:
            return policy
    raise UsageError(f"--bundle-mirrors {text!r} is not one of {', '.join(MIRROR_POLICIES)}")


class Mirrors:
    """Which mirrors this agent asks."""

    def __init__(
        self, policy: MirrorPolicy = "https", tls: Callable[[], ssl.SSLContext] = ssl.create_default_context
    ) -> None:
        """`https` also allows http on this very machine; `tls` makes the context that knows the authorities."""
        self._policy, self._tls = policy, tls
        self._ask_again_s: dict[str, float] = {}

    def begin(self, mirror: str | None, blob: BlobReference, partial: Path, now: float) -> MirrorFetch | None:
        """Start to fetch a bundle into `partial`; None where no mirror may be asked, or the last try was just now."""
        if mirror is None or now < self._ask_again_s.get(mirror, float("-inf")):
            return None
        objection = self.objection(mirror)
        if objection:
            self.give_up(mirror, objection, now)
            return None
        named = _named_hosts(mirror)
        context, redirects = self._tls(), _CheckedRedirects(self.objection, named)

        def make_opener(on_connect: OnConnect) -> urllib.request.OpenerDirector:
            def connected(host: str, connection: socket.socket) -> None:
                on_connect(host, connection)
                # A name may lead anywhere, whatever it was a moment ago.
                _refuse_internal(host, connection.getpeername()[0], named)

            return urllib.request.build_opener(*_handlers(context, connected), redirects)

        _log.info("fetching bundle %s from %s", blob.sha256[:12], mirror)
        return MirrorFetch(mirror, blob, partial, make_opener, now)

    def give_up(self, mirror: str, reason: str, now: float) -> None:
        """Say once why a mirror is not asked for some time."""
        self._ask_again_s = {mirror: now + ASK_AGAIN_S}  # one at a time: who names others must not fill the memory
        _log.warning("mirror %s: %s; the bundle comes through the broker instead", mirror, reason)

    def objection(self, url: str) -> str:
        """Why an address is not asked; empty where it may be."""
        if self._policy == "off":
            return "this agent asks no mirrors (--bundle-mirrors https would allow it)"
        try:
            parts = urlsplit(url)
        except ValueError:  # what a redirect names may be anything
            return "it is no address"
        if parts.scheme not in ("http", "https"):
            return f"{parts.scheme or 'no scheme'} is not https"
        if self._policy == "https" and parts.scheme == "http" and not _is_loopback(parts.hostname or ""):
            return "it does not speak https, as --bundle-mirrors https asks (--bundle-mirrors any would allow it)"
        return ""


#: What is done with a connection that was just made to a host.
OnConnect = Callable[[str, socket.socket], None]


class MirrorFetch:
    """One bundle on its way from a mirror, in a thread of its own; like `BlobFetch` to who waits for it."""

    def __init__(
        self,
        mirror: str,
        blob: BlobReference,
        partial: Path,
        make_opener: Callable[[OnConnect], urllib.request.OpenerDirector],
        now: float,
    ) -> None:
        self.mirror, self.blob = mirror, blob
        self.received_bytes = 0
        #: Set once it is over, well or not.
        self.over = threading.Event()
        self._partial, self._opener = partial, make_opener(self._on_connect)
        self._failure = ""
        self._stopped = False
        self._limit_s = WINDOW_S + blob.size / MIN_BYTES_PER_S
        self._ends_s = now + self._limit_s
        #: When the current window began, and how much had been sent by then; what is sent twice counts twice.
        self._window_s, self._window_bytes, self._sent_bytes = now, 0, 0
        self._connections: list[socket.socket] = []
        #: Held while the file is written, so that nothing is after `stop`.
        self._writing = threading.Lock()
        threading.Thread(target=self._run, name="mirror", daemon=True).start()

    @property
    def fraction(self) -> float:
        """Part of the bytes that are here."""
        return self.received_bytes / self.blob.size

    def step(self, now: float) -> Path | None:
        """The verified file once it is here; `MirrorError` where the mirror failed or is too slow."""
        if not self.over.is_set():
            slow = self._too_slow(now)
            if slow:
                self.stop()
                raise MirrorError(slow)
            return None
        if self._failure:
            raise MirrorError(self._failure)
        return self._partial

    def stop(self) -> None:
        """Write nothing more, and let go of the mirror. What is here stays, to be resumed."""
        with self._writing:
            self._stopped = True
        self._disconnect()

    def _run(self) -> None:
        try:
            self._failure = self._fetch()
        except Exception as error:  # Whatever a strange server or a full disk provokes: the chunks are there for that.
            self._failure = _one_line(error)
        self._disconnect()
        self.over.set()

    def _too_slow(self, now: float) -> str:
        """Why the mirror is not waited for any longer; empty where it is."""
        if now >= self._ends_s:
            return f"it did not serve {self.blob.size:,} bytes within {self._limit_s:,.0f} s"
        if now - self._window_s < WINDOW_S or self.received_bytes >= self.blob.size:
            return ""
        sent = self._sent_bytes - self._window_bytes
        if sent < MIN_BYTES_PER_S * WINDOW_S:
            return f"it sent {sent:,} bytes in {now - self._window_s:.0f} s"
        self._window_s, self._window_bytes = now, self._sent_bytes
        return ""

    def _on_connect(self, host: str, connection: socket.socket) -> None:
        # A handle of our own on the connection: TLS takes the other one over.
        with self._writing:
            if self._stopped:
                raise OSError("stopped")
            self._connections.append(connection.dup())

    def _disconnect(self) -> None:
        """Wake the thread wherever it waits for the mirror."""
        with self._writing:
            connections, self._connections = self._connections, []
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    def _fetch(self) -> str:
        """Fetch and verify; returns what went wrong."""
        self._partial.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        failure = ""
        for _ in range(ATTEMPTS):
            kept = min(self._partial.stat().st_size, self.blob.size) if self._partial.exists() else 0
            failure, final = self._fetch_rest(kept) if kept < self.blob.size else ("", False)
            if self._stopped or final:
                return failure
            if failure:
                continue
            if self._verified():
                return ""
            with self._writing:
                if not self._stopped:
                    self._partial.unlink()
            failure = f"what it serves does not have SHA-256 {self.blob.sha256}"
            if not kept:
                break  # Else what was kept from before may have been the bad part.
        return failure

    def _fetch_rest(self, kept: int) -> tuple[str, bool]:
        """Append what is missing; returns what went wrong, and whether asking again is of no use."""
        request = urllib.request.Request(bundle_url(self.mirror, self.blob.sha256))
        request.add_header("User-Agent", "fleetnas-agent")
        request.add_header("Accept-Encoding", "identity")
        if kept:
            request.add_header("Range", f"bytes={kept}-")
        try:
            with self._opener.open(request, timeout=_TIMEOUT_S) as answer:
                begin = _first_byte(answer) if answer.status == 206 else 0
                if begin not in (0, kept):
                    return "it answers with another part of the file than was asked for", True
                length = answer.headers.get("Content-Length", "")
                if length.isdecimal() and begin + int(length) != self.blob.size:
                    return f"its file has {begin + int(length):,} bytes and not {self.blob.size:,}", True
                return self._append(answer, begin), False
        except urllib.error.HTTPError as error:
            error.close()
            return f"HTTP {error.code} {http.client.responses.get(error.code, '')}".rstrip(), True
        except _RefusedRedirectError as error:
            return str(error), True
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            return _one_line(getattr(error, "reason", None) or error), False

    def _append(self, answer: Any, begin: int) -> str:
        # Unbuffered: what `stop` finds written is all that ever will be.
        with self._partial.open("r+b" if self._partial.exists() else "wb", buffering=0) as file:
            self.received_bytes = begin
            if not self._write(file, begin, b""):
                return "stopped"
            while self.received_bytes < self.blob.size:
                # What one packet brings, not a whole block: of a slow mirror that would take hours.
                block = answer.read1(min(_BLOCK_BYTES, self.blob.size - self.received_bytes))
                if not block:
                    return f"it broke off after {self.received_bytes:,} of {self.blob.size:,} bytes"
                if not self._write(file, self.received_bytes, block):
                    return "stopped"
                self.received_bytes += len(block)
                self._sent_bytes += len(block)
        return ""

    def _write(self, file: io.FileIO, offset: int, block: bytes) -> bool:
        """Let the file end with `block` at `offset`; False after `stop`."""
        with self._writing:
            if self._stopped:
                return False
            file.truncate(offset)
            file.seek(offset)
            view = memoryview(block)
            while view:
                view = view[file.write(view) :]
            return True

    def _verified(self) -> bool:
        digest = hashlib.sha256()
        with self._partial.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
        return digest.hexdigest() == self.blob.sha256


class _RefusedRedirectError(Exception):
    pass


class _CheckedRedirects(urllib.request.HTTPRedirectHandler):
    """What may not be asked may not be redirected to either, and nor may this device or its own network."""

    def __init__(self, objection: Callable[[str], str], named: Collection[str]) -> None:
        self._objection, self._named = objection, named

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        objection = self._objection(newurl)
        if objection:
            raise _RefusedRedirectError(f"it redirects to {plain(newurl[:100])}: {objection}")
        host = urlsplit(newurl).hostname or ""
        _refuse_internal(host, host, self._named)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _Connection(http.client.HTTPConnection):
    """Says when it is connected, before anything is sent or encrypted."""

    on_connect: OnConnect

    def connect(self) -> None:
        super().connect()
        self.on_connect(self.host, self.sock)


class _SecureConnection(http.client.HTTPSConnection, _Connection):
    """The same, whose TLS begins after that."""


def _handlers(context: ssl.SSLContext, on_connect: OnConnect) -> tuple[urllib.request.BaseHandler, ...]:
    def plain_connection(host: str, **options: Any) -> http.client.HTTPConnection:
        connection = _Connection(host, **options)
        connection.on_connect = on_connect
        return connection

    def secure_connection(host: str, **options: Any) -> http.client.HTTPConnection:
        connection = _SecureConnection(host, context=context, **options)
        connection.on_connect = on_connect
        return connection

    class Plain(urllib.request.HTTPHandler):
        def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(plain_connection, req)

    class Secure(urllib.request.HTTPSHandler):
        def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(secure_connection, req)

    return Plain(), Secure(context=context)


def _named_hosts(mirror: str) -> frozenset[str]:
    """The hosts that a person has named: the mirror's, and those of the proxies of this device."""
    proxies = [proxy if "//" in proxy else f"//{proxy}" for proxy in urllib.request.getproxies().values()]
    return frozenset(_plain_host(urlsplit(url).hostname or "") for url in (mirror, *proxies))


def _plain_host(host: str) -> str:
    return host.lower().rstrip(".")


def _refuse_internal(host: str, address: str, named: Collection[str]) -> None:
    """A server elsewhere must not have this device ask itself, or what only its own network can reach.

    `_RefusedRedirectError` where `address`, which may also be a name, is such a one and nobody has named `host`.
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
        raise _RefusedRedirectError(
            f"it redirects to {plain(host[:100])}, which is this device or in its own network; name that host as the "
            "mirror instead"
        )


def _one_line(error: object) -> str:
    return plain(" ".join(str(error).split())[:200]) or type(error).__name__


def _is_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _first_byte(answer: Any) -> int:
    """From `Content-Range: bytes <first>-<last>/<size>` (RFC 9110, 14.4) of a partial answer; -1 without one."""
    unit, _, rest = str(answer.headers.get("Content-Range", "")).partition(" ")
    first = rest.split("-")[0]
    return int(first) if unit == "bytes" and first.isdecimal() else -1
