"""One run shown in several ways at once."""

from __future__ import annotations

from collections.abc import Sequence

from coordinator.view.events import Event
from coordinator.view.snapshot import Snapshot
from coordinator.view.view import View


class Audience:
    """Every view sees everything; a `View`."""

    def __init__(self, views: Sequence[View]) -> None:
        self._views = tuple(views)

    def update(self, snapshot: Snapshot) -> None:
        """Give all of them the present state."""
        for view in self._views:
            view.update(snapshot)

    def event(self, event: Event) -> None:
        """Give all of them one happening."""
        for view in self._views:
            view.event(event)

    def close(self) -> None:
        """Close all of them, the last first."""
        for view in reversed(self._views):
            view.close()
