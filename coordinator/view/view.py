"""The interface of every view, and the choice of one for an output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from rich.console import Console

from fleetnas.coordinator.records.events import Event
from fleetnas.coordinator.records.snapshot import Snapshot
from fleetnas.coordinator.view.lines import JsonView, LinesView
from fleetnas.coordinator.view.live import LiveView


class View(Protocol):
    """Shows a campaign while it runs. Call it from one thread."""

    def update(self, snapshot: Snapshot) -> None:
        """Take the present state; cheap enough to be called several times a second."""

    def event(self, event: Event) -> None:
        """Take one event, in order."""

    def close(self) -> None:
        """Show the last state and release the output; a second call does nothing."""


def make_view(console: Console, json: bool, summary_follows: Callable[[], bool] = lambda: False) -> View:
    """Choose JSON lines where asked for, the live view on a terminal that can redraw, plain lines anywhere else.

    `summary_follows` tells at the end whether a summary is printed next, so that no view says what it says.
    """
    if json:
        return JsonView(console.file)
    if console.is_terminal and not console.is_dumb_terminal:
        return LiveView(console, summary_follows=summary_follows)
    return LinesView(console.file, summary_follows)
