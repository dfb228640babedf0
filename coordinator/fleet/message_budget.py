"""Limits on the messages of each agent, so that one that floods delays itself and not the fleet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

#: Kinds of messages with budgets of their own: requests for bytes of a blob, and all others.
Kind = Literal["blob", "message"]

#: A message costs one unit, and one more for each of these bytes: about the time that reading it takes.
UNIT_BYTES = 512
#: Units that an agent may spend at once and per second. A result of usual size costs 12: a full outbox of 1,000, which
#: an agent sends when the broker is back, comes through at once, and 80 a second after that.
BURST_UNITS, UNITS_PER_S = 16_000.0, 1000.0
#: Blob requests, at once and per second: with the largest chunks, 130 MB/s to one agent.
BURST_REQUESTS, REQUESTS_PER_S = 2000.0, 2000.0
#: Names that are remembered, and how often those with a full budget are forgotten, which changes nothing for them.
_MOST_NAMES, _FORGET_S = 20_000, 4.0


@dataclass(slots=True)
class _Account:
    """One token bucket."""

    units: float
    filled_s: float
    refused: int = 0

    def fill(self, burst: float, per_s: float, now_s: float) -> None:
        """Add the units of the time that has passed."""
        self.units = min(burst, self.units + (now_s - self.filled_s) * per_s)
        self.filled_s = now_s

    def refill(self, burst: float) -> None:
        """Allow everything that may be spent at once."""
        self.units = burst

    def spend(self, cost: float) -> bool:
        """Take units out; False, and one more refusal, where there are not enough."""
        if self.units < cost:
            self.refused += 1
            return False
        self.units -= cost
        return True

    def forgive(self) -> int:
        """Begin to count dropped messages anew; returns their number so far."""
        refused, self.refused = self.refused, 0
        return refused


class MessageBudget:
    """A token bucket per agent, for messages weighed by their size, and another one for blob requests."""

    def __init__(self, clock: Callable[[], float], note: Callable[[str], object]) -> None:
        """`note` takes one line when an agent begins to be refused, and one when it keeps to its budget again."""
        self._clock, self._note = clock, note
        self._accounts: dict[tuple[str, Kind], _Account] = {}
        #: Messages dropped so far, of all agents.
        self.dropped = 0
        self._forgot_s = float("-inf")

    def now(self) -> float:
        """Return the time of its clock, seconds."""
        return self._clock()

    def note(self, line: str) -> None:
        """Write a line beside its own."""
        self._note(line)

    def fill_up(self) -> None:
        """Give every agent its whole budget: the coordinator is about to ask all of them for everything they hold."""
        for (_, kind), account in self._accounts.items():
            account.refill(BURST_REQUESTS if kind == "blob" else BURST_UNITS)

    def admits(self, agent: str, kind: Kind, size: int) -> bool:
        """Whether a message of `size` bytes is read; False where it is to be dropped unread."""
        admitted = self._admits(agent, kind, size)
        self.dropped += not admitted
        return admitted

    def _admits(self, agent: str, kind: Kind, size: int) -> bool:
        burst, per_s = (BURST_REQUESTS, REQUESTS_PER_S) if kind == "blob" else (BURST_UNITS, UNITS_PER_S)
        now = self._clock()
        account = self._accounts.get((agent, kind))
        if account is None:
            account = self._open(agent, kind, burst, now)
            if account is None:
                return False
        account.fill(burst, per_s, now)
        if account.spend(1.0 if kind == "blob" else 1.0 + size / UNIT_BYTES):
            if account.refused and account.units > burst / 2:
                self._note(f"{agent} keeps to its budget of messages again; {account.forgive()} were dropped unread")
            return True
        if account.refused == 1:
            limit = f"{per_s:g} blob requests" if kind == "blob" else f"{per_s * UNIT_BYTES / 1000:.0f} kB of messages"
            self._note(
                f"{agent} floods the coordinator: it sends more than {limit} a second, and the rest is dropped unread; "
                "stop its agent, or revoke its credentials"
            )
        return False

    def _open(self, agent: str, kind: Kind, burst: float, now: float) -> _Account | None:
        """Return a full account; None where too many names are in use."""
        if len(self._accounts) >= 2 * _MOST_NAMES and now - self._forgot_s >= _FORGET_S:
            self._forgot_s = now
            self._accounts = {key: known for key, known in self._accounts.items() if now - known.filled_s < _FORGET_S}
        if len(self._accounts) >= 2 * _MOST_NAMES:
            return None
        account = self._accounts[agent, kind] = _Account(burst, now)
        return account
