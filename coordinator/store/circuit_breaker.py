"""While the store cannot be written: said once, tried again now and then, and no campaign ends for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fleetnas.fleet_protocol.errors import StoreUnavailableError

#: Between two attempts: a server that does not answer holds each of them up for seconds.
RETRY_EVERY_S = 5.0


class CircuitBreaker:
    """Whether the store is away, by what came of the last attempts to write."""

    def __init__(
        self, clock: Callable[[], float], began: Callable[[str], object], ended: Callable[[float], object]
    ) -> None:
        """`began` is called with what the store answers, `ended` with how long it was away in seconds."""
        self._clock, self._began, self._ended = clock, began, ended
        self._since_s: float | None = None
        self._retry_s = float("-inf")

    @property
    def lasts(self) -> bool:
        """The last attempt failed."""
        return self._since_s is not None

    @property
    def may_try(self) -> bool:
        """The store is there, or it is time to see whether it is back."""
        return self._since_s is None or self._clock() >= self._retry_s

    @contextmanager
    def watched(self) -> Iterator[None]:
        """An attempt: that the store is away ends the block, and nothing else."""
        try:
            yield
        except StoreUnavailableError as error:
            now = self._clock()
            self._retry_s = now + RETRY_EVERY_S
            if self._since_s is None:
                self._since_s = now
                self._began(str(error))

    def over(self) -> None:
        """Something new was stored."""
        if self._since_s is not None:
            since_s, self._since_s = self._since_s, None
            self._ended(self._clock() - since_s)
