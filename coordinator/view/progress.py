"""Progress of a run whose outcome its command shows itself."""

from __future__ import annotations

from fleetnas.coordinator.records.events import Event
from fleetnas.coordinator.view.lines import LinesView


class ProgressView(LinesView):
    """Phases and notes as plain lines, without the events, which are about targets."""

    def event(self, event: Event) -> None:
        """Do nothing."""
