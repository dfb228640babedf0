"""Writes the results of a run in the background, again whenever targets are decided."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from fleetnas.coordinator.app.priority import yield_to_measurements
from fleetnas.fleet_protocol.error_text import one_line

#: Pause before the next writing, as a multiple of the duration of the last one: writing takes a bounded share of the
#: time, however large the fleet.
_PAUSE = 20.0

_log = logging.getLogger("fleetnas.coordinator")


class ResultsWriter:
    """Calls `write` on a thread of its own, one call at a time. A failure is noted, and the campaign goes on."""

    def __init__(self, write: Callable[[], object], note: Callable[[str], object], clock: Callable[[], float]) -> None:
        self._write, self._note, self._clock = write, note, clock
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="results", initializer=yield_to_measurements)
        self._writing: Future[float] | None = None
        self._targets = 0
        self._not_before_s = float("-inf")
        self._trouble = ""

    def update(self, targets: int) -> None:
        """Start to write, where more than the last time `targets` are decided and the pause after it is over."""
        if self._writing is not None and not self._writing.done():
            return
        self.settle()
        if targets > self._targets and self._clock() >= self._not_before_s:
            self._targets = targets
            self._writing = self._executor.submit(self._timed)

    def settle(self) -> None:
        """Wait for the current writing, and note its failure once."""
        if self._writing is None:
            return
        writing, self._writing = self._writing, None
        try:
            self._not_before_s = self._clock() + _PAUSE * writing.result()
            self._trouble = ""
        except Exception as error:  # noqa: BLE001 - the results are in the store, and are written again at the end
            _log.debug("results", exc_info=error)
            trouble = one_line(error)
            if trouble != self._trouble:
                self._trouble = trouble
                self._note(f"results are not written yet: {trouble}; everything measured is in the store")

    def close(self) -> None:
        """Wait for the current writing, and end the thread."""
        self.settle()
        self._executor.shutdown()

    def _timed(self) -> float:
        began_s = self._clock()
        self._write()
        return self._clock() - began_s
