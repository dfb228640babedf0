"""Location of the store that is used where none is named."""

from __future__ import annotations

from fleetnas.fleet_protocol.folders import user_folder


def store_location(store: str | None) -> str:
    """Return the store asked for, or the default one; `UsageError` where the user has no folder for it."""
    if store is not None:
        return store
    return str(user_folder("XDG_DATA_HOME", ".local/share", "--store FILE") / "fleetnas" / "runs.sqlite")
