"""Turn the progress in snapshots into events, now and then."""

from __future__ import annotations

from collections.abc import Callable

from fleetnas.coordinator.records.events import Event, ProgressChanged
from fleetnas.coordinator.records.snapshot import Snapshot

#: An event is due once this share more is done, or after the second time, seconds; never before the first has passed.
_SHARE, _LEAST_S, _EVERY_S = 0.05, 5.0, 60.0


class ProgressEvents:
    """Emits `ProgressChanged` for a run that is at work."""

    def __init__(self, emit: Callable[[Event], None]) -> None:
        self._emit = emit
        self._shown: tuple[float, float] | None = None

    def take(self, snapshot: Snapshot) -> None:
        """Emit an event where the progress of a snapshot has changed enough."""
        found = snapshot.progress
        if found is None or not found.left_s:
            return
        if self._shown is not None:
            share, at_s = self._shown
            since_s = snapshot.now_s - at_s
            if since_s < _LEAST_S or (abs(found.done - share) < _SHARE and since_s < _EVERY_S):
                return
        self._shown = (found.done, snapshot.now_s)
        self._emit(
            ProgressChanged(
                at_s=snapshot.now_s,
                run_id=snapshot.run_id,
                done=found.done,
                left_s=found.left_s,
                least_left_s=found.least_left_s,
                most_left_s=found.most_left_s,
            )
        )
