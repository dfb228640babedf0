"""A real web server in the place of a mirror: byte ranges, TLS, and the faults that tests ask for."""

from __future__ import annotations

import contextlib
import http.server
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass
class MirrorServer:
    """Serves `files` by path. A fault is set before the agent asks."""

    files: dict[str, bytes] = field(default_factory=dict)
    #: Requests that were answered: path, and the first byte asked for, or None.
    asked: list[tuple[str, int | None]] = field(default_factory=list)
    url: str = ""
    #: Bytes after which each answer breaks off.
    breaks_off_after: int | None = None
    knows_ranges: bool = True
    redirects_to: str | None = None
    #: Of an answer that lies about which part it is, or how long.
    content_range: str | None = None
    content_length: int | None = None
    #: Where set, an answer stops after so many bytes until the event comes.
    goes_on: threading.Event | None = None
    stops_after: int = 1000
    stopped_at: threading.Event = field(default_factory=threading.Event)


@contextlib.contextmanager
def mirror(server: MirrorServer | None = None, tls: ssl.SSLContext | None = None) -> Iterator[MirrorServer]:
    """A running server on a free port of this machine."""
    mirrored = server or MirrorServer()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            _answer(self, mirrored)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.daemon_threads = True
        if tls is not None:
            running.socket = tls.wrap_socket(running.socket, server_side=True)
        mirrored.url = f"{'https' if tls else 'http'}://localhost:{running.server_address[1]}"
        thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield mirrored
        finally:
            if mirrored.goes_on is not None:
                mirrored.goes_on.set()
            running.shutdown()
            thread.join()


def _answer(request: http.server.BaseHTTPRequestHandler, server: MirrorServer) -> None:
    wanted = request.headers.get("Range", "").removeprefix("bytes=").rstrip("-")
    server.asked.append((request.path, int(wanted) if wanted else None))
    if server.redirects_to is not None:
        request.send_response(302)
        request.send_header("Location", server.redirects_to + request.path)
        request.end_headers()
        return
    data = server.files.get(request.path)
    if data is None:
        request.send_error(404, "\x1b[31mred")
        return
    begin = int(wanted) if wanted and server.knows_ranges else 0
    if begin >= len(data):
        request.send_error(416)
        return
    request.send_response(206 if begin else 200)
    if begin:
        found = server.content_range or f"bytes {begin}-{len(data) - 1}/{len(data)}"
        request.send_header("Content-Range", found)
    request.send_header("Content-Length", str(server.content_length or len(data) - begin))
    request.end_headers()
    rest = data[begin:]
    with contextlib.suppress(OSError):  # who asked has gone
        if server.goes_on is not None:
            request.wfile.write(rest[: server.stops_after])
            request.wfile.flush()
            server.stopped_at.set()
            server.goes_on.wait()
            rest = rest[server.stops_after :]
        request.wfile.write(rest[: server.breaks_off_after])
    request.close_connection = True
