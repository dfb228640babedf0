"""Find folders of the user and of the system when they are needed: not every user has a home."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from fleetnas.fleet_protocol.errors import StoreError, UsageError


def home_folder() -> Path | None:
    """Return the user's home; None if neither `$HOME` nor the user database names one, as in many containers."""
    try:
        return Path.home()
    except RuntimeError:
        return None


def user_folder(variable: str, below_home: str, instead: str = "") -> Path:
    """Return `$variable`, else `below_home` in the user's home.

    Raises `UsageError` if there is neither; `instead` names an option that sets the same folder.
    """
    base = os.environ.get(variable)
    if base:
        return Path(base)
    home = home_folder()
    if home is None:
        choice = f"give {instead}, or set" if instead else "set"
        raise UsageError(
            f"user {os.getuid()} has no home folder, and ${variable} is not set; {choice} ${variable} or $HOME to a "
            "folder that can be written"
        )
    return home / below_home


def temporary_folder() -> Path:
    """Return the folder for temporary files; `StoreError` if none can be written, as in a read-only container."""
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        raise StoreError(
            "no folder for temporary files can be written (tried $TMPDIR, /tmp and /var/tmp); set TMPDIR to one that "
            "can, or start the container with --tmpfs /tmp"
        ) from error
