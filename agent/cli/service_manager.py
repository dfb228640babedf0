"""What the agent tells systemd, if that started it: ready, alive, stopping. Elsewhere every call does nothing.

The protocol of sd_notify(3): datagrams to the socket that `NOTIFY_SOCKET` names.
"""

from __future__ import annotations

import contextlib
import os
import socket


class ServiceManager:
    """The connection to the service manager."""

    def __init__(self) -> None:
        # Taken out of the environment, so that the measuring child does not speak for us.
        self._address = os.environ.pop("NOTIFY_SOCKET", "")
        watchdog_us = os.environ.pop("WATCHDOG_USEC", "")
        self._alive_every_s = int(watchdog_us) / 2e6 if watchdog_us.isdecimal() else float("inf")
        self._alive_at = float("-inf")

    def ready(self) -> None:
        """Start-up is over."""
        self._send("READY=1")

    def stopping(self) -> None:
        """Shutting down has begun."""
        self._send("STOPPING=1")

    def alive(self, now: float) -> None:
        """The main loop goes round; call it each time."""
        if now - self._alive_at >= self._alive_every_s:
            self._alive_at = now
            self._send("WATCHDOG=1")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        # A leading @ stands for the abstract namespace, whose names begin with a zero byte.
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
            connection.sendto(message.encode(), address)
