"""One run shown in several ways at once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

from coordinator.view.events import Event
from coordinator.view.snapshot import Snapshot
from coordinator.view.view import View


class Audience:
    """Every view sees everything; a `View`. One whose output is gone is left out from then on, and the run goes on."""

    def __init__(self, views: Sequence[View]) -> None:
        self._views = list(views)

    def update(self, snapshot: Snapshot) -> None:
        """Give all of them the present state."""
        self._tell(lambda view: view.update(snapshot))

    def event(self, event: Event) -> None:
        """Give all of them one happening."""
        self._tell(lambda view: view.event(event))

    def close(self) -> None:
        """Close all of them, the last first."""
        for view in reversed(self._views):
            with contextlib.suppress(OSError):
                view.close()

    def _tell(self, tell: Callable[[View], None]) -> None:
        for view in tuple(self._views):
            try:
                tell(view)
            except OSError:  # noqa: PERF203 - such as a terminal that was closed
                self._views.remove(view)
