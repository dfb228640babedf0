"""Log refused messages, a line each, but never a flood of lines."""

from __future__ import annotations

from collections.abc import Callable

from fleetnas.device_profiles.plain_text import plain

MOST_LINES, WINDOW_S = 10, 60.0
_MAX_CHARACTERS = 400


class RateLimitedLog:
    """Logs the first `MOST_LINES` lines of a minute, then only counts.

    A line may quote a stranger's message: characters that could steer a terminal or forge a second line are replaced.
    """

    def __init__(self, log: Callable[[str], None], clock: Callable[[], float]) -> None:
        self._log = log
        self._clock = clock
        self._began_s = clock()
        self._lines = 0
        self._silent = 0
        #: Number of all lines so far, logged or not.
        self.total = 0

    def __call__(self, line: str) -> bool:
        """Log a line if the limit allows; return whether it was logged."""
        now = self._clock()
        self.total += 1
        if now - self._began_s >= WINDOW_S:
            silent, self._silent = self._silent, 0
            self._began_s, self._lines = now, 0
            if silent:
                self._log(f"{silent} more messages were refused in the minute before")
        if self._lines >= MOST_LINES:
            self._silent += 1
            return False
        self._lines += 1
        self._log(plain(line[:_MAX_CHARACTERS].replace("\n", " ")))
        return True
