"""Lay out the files of the service."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

UNIT = "fleetnas-agent.service"
USER = "fleetnas"
#: Where systemd keeps the state of the service.
SERVICE_STATE = Path("/var/lib/fleetnas")


@dataclass(frozen=True, slots=True)
class Installation:
    """Paths of the service's files; with another `root` than `/` they are only written there, nothing is started."""

    root: Path = Path("/")
    python: Path = Path(sys.executable)

    @property
    def unit(self) -> Path:
        """The unit file."""
        return self.root / "etc/systemd/system" / UNIT

    @property
    def configuration(self) -> Path:
        """The agent's configuration."""
        return self.root / "etc/fleetnas/agent.conf"

    @property
    def credentials(self) -> Path:
        """The service's own copy of its credentials."""
        return self.root / "etc/fleetnas/agent.credentials"

    @property
    def staged(self) -> bool:
        """Whether files are only written below another root: nothing is started, no user is made."""
        return self.root != Path("/")
