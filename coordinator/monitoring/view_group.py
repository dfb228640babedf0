"""One run shown in several ways at once."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence

from fleetnas.coordinator.records.events import Event
from fleetnas.coordinator.records.snapshot import Snapshot
from fleetnas.coordinator.view.view import View

_log = logging.getLogger("fleetnas.coordinator")


class ViewGroup:
    """Every view sees everything; a `View`. One whose output is gone is left out from then on, and the run goes on."""

    def __init__(self, views: Sequence[View]) -> None:
        self._views = list(views)
        self._failed: set[int] = set()

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
            self._tell_one(view, tell)

    def _tell_one(self, view: View, tell: Callable[[View], None]) -> None:
        """A value that one view cannot show costs it that value."""
        try:
            tell(view)
        except OSError:  # such as a terminal that was closed
            self._views.remove(view)
        except Exception as error:
            if id(view) not in self._failed:
                self._failed.add(id(view))
                _log.error("%s cannot show everything", type(view).__name__, exc_info=error)
