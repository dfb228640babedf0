"""Circuit breaker of the store: while it cannot be written, attempts are rare, and the campaign goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fleetnas.fleet_protocol.errors import StoreUnavailableError

#: Seconds between two attempts: a server that does not answer holds each of them up for seconds.
RETRY_EVERY_S = 5.0


class CircuitBreaker:
    """Remembers whether the last attempt to write the store failed. It is open while the store is unavailable."""

    def __init__(
        self, clock: Callable[[], float], on_open: Callable[[str], object], on_closed: Callable[[float], object]
    ) -> None:
        """`on_open` is given the store's error, `on_closed` the seconds for which the store was unavailable."""
        self._clock, self._on_open, self._on_closed = clock, on_open, on_closed
        self._since_s: float | None = None
        self._retry_s = float("-inf")

    @property
    def is_open(self) -> bool:
        """Whether the last attempt failed."""
        return self._since_s is not None

    @property
    def may_try(self) -> bool:
        """Whether the store may be written: it is available, or the next attempt is due."""
        return self._since_s is None or self._clock() >= self._retry_s

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Attempt to write; `StoreUnavailableError` ends the block and opens the breaker, other errors pass."""
        try:
            yield
        except StoreUnavailableError as error:
            now = self._clock()
            self._retry_s = now + RETRY_EVERY_S
            if self._since_s is None:
                self._since_s = now
                self._on_open(str(error))

    def reset(self) -> None:
        """Close the breaker: something new was stored."""
        if self._since_s is not None:
            since_s, self._since_s = self._since_s, None
            self._on_closed(self._clock() - since_s)
