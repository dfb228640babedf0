"""Where an agent keeps what must outlive it."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from fleet_protocol.errors import StoreError

_PRIVATE = 0o700


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

    def prepare(self) -> None:
        """Make the folders, closed to other users, and close those that an earlier version left open.

        A root that exists keeps its mode: it may be anybody's. `StoreError` where they cannot be made.
        """
        shared = (self.root / "fleets", self.blobs, self.probes, self.engines)
        try:
            self.root.mkdir(mode=_PRIVATE, parents=True, exist_ok=True)
            for folder in (*shared, self.agent.parent, self.agent, self.partial):
                folder.mkdir(mode=_PRIVATE, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"the state folder {self.root} cannot be written ({error}); free some space, or choose another with "
                "--state-dir"
            ) from error
        for folder in shared:
            if folder.stat().st_mode & 0o077:
                with contextlib.suppress(OSError):  # another user's
                    folder.chmod(_PRIVATE)

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
