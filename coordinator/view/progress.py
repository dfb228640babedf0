"""Progress of a run whose outcome its command shows itself."""

from __future__ import annotations

from fleetnas.coordinator.records.events import BaselineMeasured, DeviceJoined, DeviceLost, Event
from fleetnas.coordinator.view.lines import LinesView


class ProgressView(LinesView):
    """Phases, notes, devices and baselines as plain lines, without the events that are about targets."""

    def event(self, event: Event) -> None:
        """Write the line of an event on a device or a baseline."""
        if isinstance(event, BaselineMeasured | DeviceJoined | DeviceLost):
            super().event(event)
