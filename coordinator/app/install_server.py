"""A small HTTP server of a fixed set of files: the agent's wheel, the script that installs it, credentials once.

It has no folders: a request names one of the files or is refused. The line that a user pastes on a device holds the
script's hash, and the script that of the wheel, so that nobody on the way can change what is installed. Credentials are
served over TLS alone, under a path that nobody can guess, and once.
"""

from __future__ import annotations

import http.server
import socket
import ssl
import tempfile
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any

from fleetnas.fleet_protocol.addresses import check_host, host_and_port
from fleetnas.fleet_protocol.errors import TransportError

#: A connection that sends or takes nothing for so long is closed, seconds.
_IDLE_S = 30.0
#: Connections served at the same time; others are closed at once.
_MOST_CONNECTIONS = 16
_CHUNK_BYTES = 256 * 1024


@dataclass(frozen=True)
class ServedFile:
    """One file."""

    path: str
    """Path of its URL, such as `/install`."""
    content: bytes = field(repr=False)
    content_type: str = "application/octet-stream"
    once: bool = False
    """It is served once: a second request is refused."""


@dataclass(frozen=True)
class ServerIdentity:
    """Certificate and key of a server with TLS, PEM."""

    certificate: str
    key: str = field(repr=False)


class InstallServer:
    """Serves files from threads of its own; a context manager. Port 0 takes a free one."""

    def __init__(
        self,
        files: Iterable[ServedFile],
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        identity: ServerIdentity | None = None,
    ) -> None:
        """Listen on `host`, with TLS where there is an `identity`.

        Raises:
            TransportError: the port is not available.
        """
        self._host = check_host(host) if host else host
        self._server = _listening(self._host, port, _tls(identity) if identity is not None else None)
        self.add(files)
        self._thread = threading.Thread(target=self._server.serve_forever, name="install-server", daemon=True)

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self._server.server_address[1])

    def url(self, address: str) -> str:
        """Return the URL of this server under one of its machine's addresses."""
        scheme = "https" if self._server.tls is not None else "http"
        return f"{scheme}://{host_and_port(address, self.port)}"

    def on_served(self, call: Callable[[str, str], object]) -> None:
        """Call `call(path, client)` after each file that was sent whole, from a thread of the server."""
        self._server.observe(call)

    def add(self, files: Iterable[ServedFile]) -> None:
        """Serve further files, from now on."""
        self._server.add(files)

    def __enter__(self) -> InstallServer:
        self._thread.start()
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    #: Another program's socket on this port is no reason to take it over.
    allow_reuse_port = False
    request_queue_size = _MOST_CONNECTIONS

    def __init__(self, address: tuple[str, int], tls: ssl.SSLContext | None) -> None:
        self.address_family = _family(address[0])
        self.files: dict[str, ServedFile] = {}
        self.tls = tls
        self.on_served: Callable[[str, str], object] = lambda path, client: None
        self._free = threading.BoundedSemaphore(_MOST_CONNECTIONS)
        self._lock = threading.Lock()
        super().__init__(address, _Handler)

    def add(self, files: Iterable[ServedFile]) -> None:
        """Serve further files."""
        with self._lock:
            self.files.update({file.path: file for file in files})

    def observe(self, call: Callable[[str, str], object]) -> None:
        """Call `call(path, client)` after each file that was sent whole."""
        self.on_served = call

    def take(self, path: str) -> ServedFile | None:
        """Return the file of a path; one that is served once is gone then."""
        with self._lock:
            found = self.files.get(path)
            if found is not None and found.once:
                del self.files[path]
            return found

    def give_back(self, file: ServedFile) -> None:
        """Serve a file again that did not arrive."""
        with self._lock:
            self.files[file.path] = file

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            # The handshake is made here: in the accepting thread one silent client would keep all others out.
            request.settimeout(_IDLE_S)
            if self.tls is not None:
                request = self.tls.wrap_socket(request, server_side=True)
            super().process_request_thread(request, client_address)
        except OSError:  # such as a client that speaks no TLS
            self.shutdown_request(request)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore a client that goes away; the user of this command can do nothing about it."""


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server
    server_version, sys_version = "fleetnas", ""
    timeout = _IDLE_S

    def do_GET(self) -> None:
        self._answer(with_content=True)

    def do_HEAD(self) -> None:
        self._answer(with_content=False)

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 - http.server's own name
        """Write nothing: `on_served` tells of what was served."""

    def _answer(self, *, with_content: bool) -> None:
        path = self.path.partition("?")[0]
        file = self.server.take(path) if with_content else self.server.files.get(path)
        if file is None:
            self.send_error(HTTPStatus.NOT_FOUND, "no such file")
            return
        try:
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", file.content_type)
            self.send_header("Content-Length", str(len(file.content)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            if not with_content:
                return
            for begin in range(0, len(file.content), _CHUNK_BYTES):
                self.wfile.write(file.content[begin : begin + _CHUNK_BYTES])
            self.wfile.flush()
        except OSError:
            if with_content and file.once:
                self.server.give_back(file)
            raise
        self.server.on_served(file.path, str(self.client_address[0]))


def _listening(host: str, port: int, tls: ssl.SSLContext | None) -> _Server:
    try:
        return _Server((host or "0.0.0.0", port), tls)
    except OSError as error:
        raise TransportError(
            f"the install server cannot listen on {host_and_port(host or '0.0.0.0', port)}: {error.strerror or error}; "
            "stop what uses the port, or choose another with --install-port"
        ) from error


def _family(host: str) -> int:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _tls(identity: ServerIdentity) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # ssl reads certificates from files alone; this one is gone at once, and only we could read it.
    with tempfile.TemporaryDirectory(prefix="fleetnas-tls-") as folder:
        pair = Path(folder, "pair.pem")
        pair.touch(0o600)
        pair.write_text(identity.certificate + identity.key)
        context.load_cert_chain(pair)
    return context
