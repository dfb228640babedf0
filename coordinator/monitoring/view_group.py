"""One run shown by several views at once."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence

from fleetnas.coordinator.records.events import Event
from fleetnas.coordinator.records.snapshot import Snapshot
from fleetnas.coordinator.view.view import View

_log = logging.getLogger("fleetnas.coordinator")


class ViewGroup:
    """Gives every view everything; a `View`. A view whose output is gone is left out, and the run goes on."""

    def __init__(self, views: Sequence[View]) -> None:
        self._views = list(views)
        self._failed: set[int] = set()

    def update(self, snapshot: Snapshot) -> None:
        """Give the present state to every view."""
        self._show(lambda view: view.update(snapshot))

    def event(self, event: Event) -> None:
        """Give one event to every view."""
        self._show(lambda view: view.event(event))

    def close(self) -> None:
        """Close every view, the last first."""
        for view in reversed(self._views):
            with contextlib.suppress(OSError):
                view.close()

    def _show(self, show: Callable[[View], None]) -> None:
        for view in tuple(self._views):
            self._show_contained(view, show)

    def _show_contained(self, view: View, show: Callable[[View], None]) -> None:
        """Show a value; one that a view cannot show costs that view the value alone."""
        try:
            show(view)
        except OSError:  # such as a terminal that was closed
            self._views.remove(view)
        except Exception as error:  # noqa: BLE001 - a view's defect must not end a search
            if id(view) not in self._failed:
                self._failed.add(id(view))
                _log.error("%s cannot show everything", type(view).__name__, exc_info=error)
