"""Notify systemd, if it started the agent: ready, alive, stopping. Elsewhere every call does nothing.

The protocol is that of sd_notify(3): datagrams to the socket in `NOTIFY_SOCKET`.
"""

from __future__ import annotations

import contextlib
import os
import socket


class ServiceManager:
    """The connection to the service manager."""

    def __init__(self) -> None:
        # Removed from the environment, so that the measuring child sends no notification.
        self._address = os.environ.pop("NOTIFY_SOCKET", "")
        watchdog_us = os.environ.pop("WATCHDOG_USEC", "")
        self._alive_every_s = int(watchdog_us) / 2e6 if watchdog_us.isdecimal() else float("inf")
        self._alive_at = float("-inf")

    def ready(self) -> None:
        """Notify that the agent serves."""
        self._send("READY=1")

    def stopping(self) -> None:
        """Notify that the agent is about to end."""
        self._send("STOPPING=1")

    def alive(self, now: float) -> None:
        """Feed the watchdog; call it in every round of the main loop, `now` in monotonic seconds."""
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
