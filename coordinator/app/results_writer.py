"""The folder of results while its run is at work: written again whenever targets are decided, beside the campaign."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from fleetnas.coordinator.app.priority import yield_to_measurements
from fleetnas.fleet_protocol.error_text import one_line

#: Writing takes at most this share of the time, however large the fleet: the next begins so many times later than
#: the last one took.
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
        """Write unless the results of that many decided targets are written, or the last writing was a moment ago."""
        if self._writing is not None and not self._writing.done():
            return
        self.settle()
        if targets > self._targets and self._clock() >= self._not_before_s:
            self._targets = targets
            self._writing = self._executor.submit(self._timed)

    def settle(self) -> None:
        """Wait for what is being written, and note what kept it from being written."""
        if self._writing is None:
            return
        writing, self._writing = self._writing, None
        try:
            self._not_before_s = self._clock() + _PAUSE * writing.result()
            self._trouble = ""
        except Exception as error:  # the results are written again at the end, and are in the store all the while
            _log.debug("results", exc_info=error)
            trouble = one_line(error)
            if trouble != self._trouble:
                self._trouble = trouble
                self._note(f"results are not written yet: {trouble}; everything measured is in the store")

    def close(self) -> None:
        """Let what is being written come to its end."""
        self.settle()
        self._executor.shutdown()

    def _timed(self) -> float:
        began_s = self._clock()
        self._write()
        return self._clock() - began_s
