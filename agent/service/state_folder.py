"""Lay out the folder with everything that outlives an agent's process."""

from __future__ import annotations

import contextlib
import os
import pwd
import tempfile
from dataclasses import dataclass
from pathlib import Path

from fleetnas.fleet_protocol.errors import StoreError, UsageError
from fleetnas.fleet_protocol.folders import user_folder

_PRIVATE = 0o700
#: The rule of `default_state_folder`, for help texts: the folder is not looked up before it is needed.
DEFAULT_PLACE = "$STATE_DIRECTORY, else $XDG_STATE_HOME/fleetnas, else ~/.local/state/fleetnas"


def default_state_folder() -> Path:
    """`$STATE_DIRECTORY` under systemd, else `$XDG_STATE_HOME/fleetnas`, else `~/.local/state/fleetnas`.

    Raises `UsageError` if the user has no home folder either.
    """
    service = os.environ.get("STATE_DIRECTORY", "").split(":")[0]
    if service:
        return Path(service)
    return user_folder("XDG_STATE_HOME", ".local/state", "--state-dir DIR") / "fleetnas"


@dataclass(frozen=True, slots=True)
class StateFolder:
    """The layout: the agents of this host share blobs, probes and engines; the rest belongs to one agent."""

    root: Path
    fleet: str
    name: str

    def prepare(self) -> None:
        """Make the folders, closed to other users, and close those that an earlier version left open.

        A root that exists keeps its mode. Raises `StoreError` if a folder cannot be made.
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
        """The agent's own folder."""
        return self.root / "fleets" / self.fleet / self.name

    @property
    def outbox(self) -> Path:
        """Database of results that are not acknowledged."""
        return self.agent / "outbox.sqlite"

    @property
    def partial(self) -> Path:
        """Folder of partial files: blobs that are not complete yet."""
        return self.agent / "partial"

    @property
    def blobs(self) -> Path:
        """Folder of verified blobs."""
        return self.root / "blobs"

    @property
    def probes(self) -> Path:
        """Folder of micro-benchmarks per runtime build."""
        return self.root / "probes"

    @property
    def engines(self) -> Path:
        """Folder of compiled engines, per model."""
        return engines_below(self.root)


def unusable_place(folder: StateFolder) -> tuple[Path, str] | None:
    """Return the first path that an agent could not use, and why; None if it can use all. Nothing is made.

    An agent that another user once started, such as with sudo, leaves files that only that user may write.
    """
    there = next(place for place in (folder.root, *folder.root.parents) if os.path.lexists(place))
    places = [there]
    if there == folder.root:
        kept = [folder.root / "fleets", folder.agent.parent, folder.agent, folder.partial, folder.blobs, folder.probes]
        places += [place for place in (*kept, folder.engines) if os.path.lexists(place)]
        files = [folder.agent / "session", *sorted(folder.agent.glob("outbox.sqlite*"))]
        places += [file for file in files if os.path.lexists(file)]
    for place in places:
        is_file = place in (folder.agent / "session", *folder.agent.glob("outbox.sqlite*"))
        if not is_file and not os.path.isdir(place):
            return place, "is not a folder"
        if not os.access(place, os.R_OK | os.W_OK | (0 if is_file else os.X_OK)):
            return place, f"cannot be written{_owner(place)}"
    try:
        # A full disk shows only here.
        with tempfile.TemporaryFile(dir=there) as probe:
            probe.write(b"x")
    except OSError as error:
        return there, f"cannot be written: {error.strerror}"
    return None


def _owner(place: Path) -> str:
    """Name the owner, if that is another user."""
    owner = os.stat(place).st_uid
    if owner == os.geteuid():
        return ""
    try:
        return f": it belongs to {pwd.getpwuid(owner).pw_name}"
    except KeyError:
        return f": it belongs to user {owner}"


def engines_below(root: Path) -> Path:
    """Return the folder in which the agents of a state folder keep compiled engines."""
    return root / "engines"


def default_engine_folder() -> Path | None:
    """Return the engine folder of the default state folder; None, so that nothing is kept, if there is none."""
    try:
        return engines_below(default_state_folder())
    except UsageError:
        return None
