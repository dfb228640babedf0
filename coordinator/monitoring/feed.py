"""Where `fleetnas watch` gets a run from, and how it shows it: replayed into the views of the search itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from fleetnas.coordinator.records.events import Event
from fleetnas.coordinator.records.snapshot import Snapshot
from fleetnas.coordinator.view.view import View

End = Literal["complete", "partial", "failed", "interrupted"]


@dataclass(frozen=True)
class FeedUpdate:
    """What a feed brought since it was asked last."""

    events: tuple[Event, ...] = ()
    snapshot: Snapshot | None = None
    """The present state; None where nothing is known yet."""
    missed: int = 0
    """Events that were not heard."""
    end: End | None = None
    """How the run ended."""


class Feed(Protocol):
    """Tells of one run."""

    run_id: str

    def poll(self, timeout_s: float) -> FeedUpdate:
        """What is new, waiting up to `timeout_s` for it."""

    def close(self) -> None:
        """Let go of where it comes from."""


def follow(feed: Feed, view: View, on_missed: Callable[[int], None], poll_s: float = 0.25) -> End:
    """Show a run until it ends; returns how."""
    while True:
        news = feed.poll(poll_s)
        for event in news.events:
            view.event(event)
        if news.missed:
            on_missed(news.missed)
        if news.snapshot is not None:
            view.update(news.snapshot)
        if news.end is not None:
            return news.end
