"""Fetch a bundle from the mirror that its task names: resumed and verified; if anything fails, the broker is used.

The agent sends no request to another host by itself: without a mirror in a task, or with `--bundle-mirrors off`, it
speaks to its broker alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import io
import logging
import socket
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from fleetnas.agent.transfer.mirror_opener import OnConnect, RefusedRedirectError, is_loopback, make_opener
from fleetnas.device_profiles.plain_text import plain
from fleetnas.fleet_protocol.errors import MirrorError, UsageError
from fleetnas.fleet_protocol.messages import BlobReference
from fleetnas.fleet_protocol.mirrors import bundle_url

MirrorPolicy = Literal["off", "https", "any"]
MIRROR_POLICIES: tuple[MirrorPolicy, ...] = ("off", "https", "any")

#: A mirror that failed gets no request for this long, in seconds.
RETRY_AFTER_S = 600.0
#: Requests for the rest of a file whose transfer breaks off.
ATTEMPTS = 4
_TIMEOUT_S = 30.0
#: A mirror is given up if it sends less than this over a window, or is slower than this in all: the broker is faster.
MIN_BYTES_PER_S = 4096
WINDOW_S = 60.0
_BLOCK_BYTES = 1 << 18

_log = logging.getLogger("fleetnas.agent")


def mirror_policy(text: str | None, *, signed: bool) -> MirrorPolicy:
    """Return the policy in the text of `--bundle-mirrors`, or the default for None; `UsageError` if it is no policy.

    Unless orders are `signed`, everybody who reaches the broker could name an address: the default is then `off`.
    """
    if text is None:
        return "https" if signed else "off"
    for policy in MIRROR_POLICIES:
        if text == policy:
            return policy
    raise UsageError(f"--bundle-mirrors {text!r} is not one of {', '.join(MIRROR_POLICIES)}")


class Mirrors:
    """Decides which mirrors this agent may use, and starts the fetches."""

    def __init__(
        self, policy: MirrorPolicy = "https", tls: Callable[[], ssl.SSLContext] = ssl.create_default_context
    ) -> None:
        """`https` also allows http on this host; `tls` makes the context with the trusted authorities."""
        self._policy, self._tls = policy, tls
        self._retry_at_s: dict[str, float] = {}

    def begin(self, mirror: str | None, blob: BlobReference, partial: Path, now: float) -> MirrorFetch | None:
        """Start to fetch a bundle into `partial`; None if no mirror may be used, or it failed a short while ago."""
        if mirror is None or now < self._retry_at_s.get(mirror, float("-inf")):
            return None
        objection = self.objection(mirror)
        if objection:
            self.give_up(mirror, objection, now)
            return None
        context = self._tls()

        def open_with(on_connect: OnConnect) -> urllib.request.OpenerDirector:
            return make_opener(mirror, self.objection, context, on_connect)

        _log.info("fetching bundle %s from %s", blob.sha256[:12], mirror)
        return MirrorFetch(mirror, blob, partial, open_with, now)

    def give_up(self, mirror: str, reason: str, now: float) -> None:
        """Use a mirror no more for `RETRY_AFTER_S` s, and log the reason."""
        # Only the latest is kept, so that tasks with ever new mirrors do not fill the memory.
        self._retry_at_s = {mirror: now + RETRY_AFTER_S}
        _log.warning("mirror %s: %s; the bundle comes through the broker instead", mirror, reason)

    def objection(self, url: str) -> str:
        """Return why a URL may not be requested; empty if it may."""
        if self._policy == "off":
            return "this agent uses no mirrors (--bundle-mirrors https would allow it)"
        try:
            parts = urlsplit(url)
        except ValueError:  # a redirect may name anything
            return "it is not a URL"
        if parts.scheme not in ("http", "https"):
            return f"{parts.scheme or 'no scheme'} is not https"
        if self._policy == "https" and parts.scheme == "http" and not is_loopback(parts.hostname or ""):
            return (
                "it does not speak https, which --bundle-mirrors https requires (--bundle-mirrors any would allow it)"
            )
        return ""


class MirrorFetch:
    """Fetches one bundle from a mirror in a thread of its own; used like `BlobFetch`."""

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
        #: Set once the fetch has ended, successful or not.
        self.ended = threading.Event()
        self._partial, self._opener = partial, make_opener(self._on_connect)
        self._failure = ""
        self._stopped = False
        self._limit_s = WINDOW_S + blob.size / MIN_BYTES_PER_S
        self._ends_s = now + self._limit_s
        #: When the current window began, and how much had been sent by then; bytes that are sent twice count twice.
        self._window_s, self._window_bytes, self._sent_bytes = now, 0, 0
        self._connections: list[socket.socket] = []
        #: Held while the file is written, so that nothing is after `stop`.
        self._writing = threading.Lock()
        threading.Thread(target=self._run, name="mirror", daemon=True).start()

    @property
    def fraction(self) -> float:
        """Share of the bytes that are here, 0 to 1."""
        return self.received_bytes / self.blob.size

    def step(self, now: float) -> Path | None:
        """Return the verified file once it is here, else None; `MirrorError` if the mirror failed or is too slow."""
        if not self.ended.is_set():
            slow = self._too_slow(now)
            if slow:
                self.stop()
                raise MirrorError(slow)
            return None
        if self._failure:
            raise MirrorError(self._failure)
        return self._partial

    def stop(self) -> None:
        """Write nothing more and close the connection. The partial file stays, to be resumed."""
        with self._writing:
            self._stopped = True
        self._disconnect()

    def _run(self) -> None:
        try:
            self._failure = self._fetch()
        except Exception as error:  # noqa: BLE001 - strange servers, full disks: the broker is used instead
            self._failure = _one_line(error)
        self._disconnect()
        self.ended.set()

    def _too_slow(self, now: float) -> str:
        """Return why the mirror is given up; empty if it is fast enough."""
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
        # TLS takes the socket object over; this duplicate of its handle stays ours, to shut it down.
        with self._writing:
            if self._stopped:
                raise OSError("stopped")
            self._connections.append(connection.dup())

    def _disconnect(self) -> None:
        """Shut every connection down, which wakes the thread wherever it waits."""
        with self._writing:
            connections, self._connections = self._connections, []
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    def _fetch(self) -> str:
        """Fetch and verify; return the failure, empty if there was none."""
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
            failure = f"its file does not have SHA-256 {self.blob.sha256}"
            if not kept:
                break  # with a kept part, that part may have been the bad one
        return failure

    def _fetch_rest(self, kept: int) -> tuple[str, bool]:
        """Append the missing bytes; return the failure, and whether another request is useless."""
        request = urllib.request.Request(bundle_url(self.mirror, self.blob.sha256))
        request.add_header("User-Agent", "fleetnas-agent")
        request.add_header("Accept-Encoding", "identity")
        if kept:
            request.add_header("Range", f"bytes={kept}-")
        try:
            with self._opener.open(request, timeout=_TIMEOUT_S) as answer:
                begin = _first_byte(answer) if answer.status == 206 else 0
                if begin not in (0, kept):
                    return "it answers with another part of the file than was requested", True
                length = answer.headers.get("Content-Length", "")
                if length.isdecimal() and begin + int(length) != self.blob.size:
                    return f"its file has {begin + int(length):,} bytes and not {self.blob.size:,}", True
                return self._append(answer, begin), False
        except urllib.error.HTTPError as error:
            error.close()
            return f"HTTP {error.code} {http.client.responses.get(error.code, '')}".rstrip(), True
        except RefusedRedirectError as error:
            return str(error), True
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            return _one_line(getattr(error, "reason", None) or error), False

    def _append(self, answer: Any, begin: int) -> str:
        # Unbuffered, so that nothing is written after `stop`.
        with self._partial.open("r+b" if self._partial.exists() else "wb", buffering=0) as file:
            self.received_bytes = begin
            if not self._write(file, begin, b""):
                return "stopped"
            while self.received_bytes < self.blob.size:
                # One packet, not a whole block, for which a slow mirror would need hours.
                block = answer.read1(min(_BLOCK_BYTES, self.blob.size - self.received_bytes))
                if not block:
                    return f"it broke off after {self.received_bytes:,} of {self.blob.size:,} bytes"
                if not self._write(file, self.received_bytes, block):
                    return "stopped"
                self.received_bytes += len(block)
                self._sent_bytes += len(block)
        return ""

    def _write(self, file: io.FileIO, offset: int, block: bytes) -> bool:
        """Write `block` at `offset` as the end of the file; False after `stop`."""
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


def _one_line(error: object) -> str:
    return plain(" ".join(str(error).split())[:200]) or type(error).__name__


def _first_byte(answer: Any) -> int:
    """Read the offset in `Content-Range: bytes <first>-<last>/<size>` (RFC 9110, 14.4); -1 if there is none."""
    unit, _, rest = str(answer.headers.get("Content-Range", "")).partition(" ")
    first = rest.split("-")[0]
    return int(first) if unit == "bytes" and first.isdecimal() else -1
