"""Feeds of one run for `fleetnas watch`, shown with the views of the search itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from fleetnas.coordinator.records.events import Event
from fleetnas.coordinator.records.snapshot import Snapshot
from fleetnas.coordinator.records.statuses import RunStatus
from fleetnas.coordinator.view.view import View


@dataclass(frozen=True)
class FeedUpdate:
    """Everything that a feed received since its last poll."""

    events: tuple[Event, ...] = ()
    snapshot: Snapshot | None = None
    """The present state; None where nothing is known yet."""
    missed: int = 0
    """Number of events that did not arrive."""
    end: RunStatus | None = None
    """The status of the run once it has ended; None before."""


class Feed(Protocol):
    """Source of the events and snapshots of one run."""

    run_id: str

    def poll(self, timeout_s: float) -> FeedUpdate:
        """Return what is new, after waiting up to `timeout_s` seconds for it."""

    def close(self) -> None:
        """Close the connection to the source."""


def follow(feed: Feed, view: View, on_missed: Callable[[int], None], poll_s: float = 0.25) -> RunStatus:
    """Show a run until it ends; returns its status then. `on_missed` is given the number of events that were lost."""
    while True:
        update = feed.poll(poll_s)
        for event in update.events:
            view.event(event)
        if update.missed:
            on_missed(update.missed)
        if update.snapshot is not None:
            view.update(update.snapshot)
        if update.end is not None:
            return update.end
