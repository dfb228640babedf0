"""Serves the dashboard until it is told to stop."""

from __future__ import annotations

import contextlib
import errno
import signal
import socket
from collections.abc import Callable

import uvicorn

from fleetnas.coordinator.dashboard.access import Application
from fleetnas.fleet_protocol.addresses import host_and_port
from fleetnas.fleet_protocol.error_text import one_line
from fleetnas.fleet_protocol.errors import UsageError

#: Connections that wait for the server.
_BACKLOG = 128
#: Seconds that answers under way may take once the server is to stop.
_LAST_ANSWERS_S = 3


def listen(host: str, port: int) -> socket.socket:
    """Listen on an address; port 0 takes a free one. `UsageError` where that cannot be."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:  # UnicodeError: no host name at all
        text = f"--host {host} is no address of this machine ({one_line(error)}); give one such as 127.0.0.1"
        raise UsageError(text) from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise UsageError(_refusal(host, port, error)) from error
    return listener


def _refusal(host: str, port: int, error: OSError) -> str:
    where = host_and_port(host.strip("[]"), port)
    if error.errno == errno.EADDRINUSE:
        return (
            f"{where} is in use, maybe by another dashboard; end that program, or give another --port (0: a free one)"
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"port {port} is reserved for the system's administrator; give a --port from 1024 on"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"--host {host} is no address of this machine; give one of its own, or 0.0.0.0 for all of them"
    return f"{where} cannot be listened on ({error.strerror}); give another --host or --port"


def serve(application: Application, listener: socket.socket, on_start: Callable[[], object] = lambda: None) -> None:
    """Serve on a listening socket until SIGINT or SIGTERM; closes it. `on_start` is called before the first answer."""
    config = uvicorn.Config(
        application,
        loop="asyncio",
        http="h11",
        ws="none",
        lifespan="off",
        # Requests may hold the token, so they are not logged.
        access_log=False,
        log_level="warning",
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=_LAST_ANSWERS_S,
    )
    server = uvicorn.Server(config)
    # Until it listens to signals by itself, and once more at the end: the server raises the one that ended it again.
    kept = {wanted: signal.signal(wanted, server.handle_exit) for wanted in (signal.SIGINT, signal.SIGTERM)}
    try:
        with contextlib.closing(listener):
            on_start()
            server.run(sockets=[listener])
    finally:
        for wanted, handler in kept.items():
            signal.signal(wanted, handler)
