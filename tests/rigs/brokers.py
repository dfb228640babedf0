"""Real brokers for tests: Debian's mosquitto on a free port of this machine."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fleetnas.fleet_protocol.transports.base import BrokerAddress
from rigs import waiting

#: Python for a program under test: a broker that was away is tried again soon. A fleet of one machine need not spread.
QUICK_RETURN = "import fleetnas.fleet_protocol.transports.mqtt as mqtt; mqtt.FIRST_WAIT_MS = (50, 500); "


def free_port() -> int:
    """A TCP port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Mosquitto:
    """A mosquitto process that can be stopped and started again on its port."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> BrokerAddress:
        return BrokerAddress("127.0.0.1", self.port)

    def start(self) -> None:
        config = self.folder / "mosquitto.conf"
        config.write_text(f"listener {self.port} 127.0.0.1\nallow_anonymous true\npersistence false\nlog_type error\n")
        self.process = subprocess.Popen([mosquitto_program(), "-c", str(config)], stderr=subprocess.DEVNULL)
        until_listening(self.port, self.process)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


def mosquitto_program() -> str:
    """Path of mosquitto; the test is skipped where it is not installed."""
    program = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")
    if program is None:
        pytest.skip("mosquitto is not installed (apt-get install mosquitto)")
    return program


def until_listening(port: int, *server: subprocess.Popen[bytes]) -> None:
    """Wait for a server that was just started."""

    def listens() -> bool:
        assert all(process.poll() is None for process in server), f"the server of port {port} has ended"
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=waiting.STALL_S):
            return True
        return False

    waiting.until(listens, *server, what=f"nothing listens on port {port}")


@contextlib.contextmanager
def mosquitto(folder: Path) -> Iterator[Mosquitto]:
    """A running broker, gone at the end."""
    broker = Mosquitto(folder, free_port())
    broker.start()
    try:
        yield broker
    finally:
        broker.kill()
