"""What is said about messages that were refused: a line each, but never a flood of them."""

from __future__ import annotations

from collections.abc import Callable

from fleetnas.device_profiles.plain_text import plain

MOST_LINES, WINDOW_S = 10, 60.0
_MAX_CHARACTERS = 400


class RateLimitedLog:
    """Passes the first `MOST_LINES` lines of a minute on, then only counts.

    A line may quote what a stranger sent, so whatever could steer a terminal or forge a second line is replaced.
    """

    def __init__(self, say: Callable[[str], None], clock: Callable[[], float]) -> None:
        self._say = say
        self._clock = clock
        self._began_s = clock()
        self._lines = 0
        self._silent = 0
        #: All that was ever refused.
        self.total = 0

    def __call__(self, line: str) -> bool:
        """Whether the line was said."""
        now = self._clock()
        self.total += 1
        if now - self._began_s >= WINDOW_S:
            silent, self._silent = self._silent, 0
            self._began_s, self._lines = now, 0
            if silent:
                self._say(f"{silent} more messages were refused in the minute before")
        if self._lines >= MOST_LINES:
            self._silent += 1
            return False
        self._lines += 1
        self._say(plain(line[:_MAX_CHARACTERS].replace("\n", " ")))
        return True
