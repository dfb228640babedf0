"""One run shown in several ways at once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from coordinator.view.events import Event
from coordinator.view.snapshot import Snapshot
from coordinator.view.view import View

_log = logging.getLogger("fleetnas.coordinator")


class Audience:
    """Every view sees everything; a `View`."""

    def __init__(self, views: Sequence[View]) -> None:
        self._views = tuple(views)
        self._failed: set[int] = set()

    def update(self, snapshot: Snapshot) -> None:
        """Give all of them the present state."""
        self._each(lambda view: view.update(snapshot))

    def event(self, event: Event) -> None:
        """Give all of them one happening."""
        self._each(lambda view: view.event(event))

    def _each(self, show: Callable[[View], object]) -> None:
        """A value that one view cannot show costs it that value. Trouble with its output is the user's to mend."""
        for number, view in enumerate(self._views):
            self._one(number, view, show)

    def _one(self, number: int, view: View, show: Callable[[View], object]) -> None:
        try:
            show(view)
        except OSError:
            raise
        except Exception as error:
            if number not in self._failed:
                self._failed.add(number)
                _log.error("%s cannot show everything", type(view).__name__, exc_info=error)

    def close(self) -> None:
        """Close all of them, the last first."""
        for view in reversed(self._views):
            view.close()
