"""Where an agent keeps what must outlive it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


def default_state_folder() -> Path:
    """`$STATE_DIRECTORY` under systemd, else `$XDG_STATE_HOME/fleetnas`, else `~/.local/state/fleetnas`."""
    service = os.environ.get("STATE_DIRECTORY", "").split(":")[0]
    if service:
        return Path(service)
    base = os.environ.get("XDG_STATE_HOME", "")
    return (Path(base) if base else Path.home() / ".local" / "state") / "fleetnas"


@dataclass(frozen=True, slots=True)
class StateFolder:
    """The layout: blobs and probes are shared by the agents of this host, the rest is one agent's own."""

    root: Path
    fleet: str
    name: str

    @property
    def agent(self) -> Path:
        """This agent's own folder."""
        return self.root / "fleets" / self.fleet / self.name

    @property
    def outbox(self) -> Path:
        """Results until they are acknowledged."""
        return self.agent / "outbox.sqlite"

    @property
    def partial(self) -> Path:
        """Blobs on their way in."""
        return self.agent / "partial"

    @property
    def blobs(self) -> Path:
        """Verified blobs."""
        return self.root / "blobs"

    @property
    def probes(self) -> Path:
        """Micro-benchmarks per runtime build."""
        return self.root / "probes"

    @property
    def engines(self) -> Path:
        """What accelerators compiled, per model."""
        return engines_below(self.root)


def engines_below(root: Path) -> Path:
    """Where the agents of a state folder keep what accelerators compiled."""
    return root / "engines"
