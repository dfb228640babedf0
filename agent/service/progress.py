"""Report the progress of one task: when its phase changes, and otherwise rarely."""

from __future__ import annotations

from collections.abc import Callable

from fleetnas.fleet_protocol.messages import Phase

#: A phase that goes on is reported again this often, in seconds; nothing is sent while a block is timed.
REPEAT_S = 5.0


class ProgressReporter:
    """Passes phases on to `report`.

    Building and measuring follow each other in every run: they are reported only after another phase was.
    """

    def __init__(self, report: Callable[[Phase, float], None]) -> None:
        self._report = report
        self._phase: Phase | None = None
        self._fraction = 0.0
        self._reported_at = float("-inf")
        self._has_reported = False

    def update(self, phase: Phase, fraction: float, now: float) -> None:
        """Note the phase and the fraction done; report them if the phase is new or the last report is old."""
        if phase != self._phase or now - self._reported_at >= REPEAT_S:
            usual = self._phase in (None, "building") and phase in ("building", "measuring") and not self._has_reported
            self._phase, self._fraction, self._reported_at = phase, fraction, now
            if not usual:
                self._has_reported = True
                self._report(phase, fraction)

    def repeat_waiting(self, now: float) -> None:
        """Report a wait again that goes on."""
        if self._phase == "waiting":
            self.update("waiting", self._fraction, now)
