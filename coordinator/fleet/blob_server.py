"""Serve byte ranges of bundles and calibrations to agents, at a bounded rate and to a few agents at a time.

A bundle goes to a few agents at once, so that the first of a large fleet measure while the last still wait; shared
among all, it would reach all of them at the very end. Small blobs do not wait for large ones, unless their agent was
sent many: then it takes turns with the others.
"""

from __future__ import annotations

import hashlib
import mmap
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from fleetnas.coordinator.fleet.bundle_delivery import DEFAULT_AT_ONCE, DEFAULT_RATE_BYTES_PER_S
from fleetnas.fleet_protocol.codec import BlobChunk, encode_chunk
from fleetnas.fleet_protocol.error_text import reason_of
from fleetnas.fleet_protocol.errors import ProtocolError, TransportError, UsageError
from fleetnas.fleet_protocol.messages import BlobReference, BlobRequest

_BURST_BYTES = 1024 * 1024
#: Largest size of a winner's calibration, which never waits behind a bundle in the queue.
_SMALL_BYTES = 1024 * 1024
#: Bytes of small blobs that an agent may be sent before others' bundles, and the part of the rate that refills them.
_AHEAD_BYTES, _AHEAD_SHARE = 1024 * 1024, 1 / 16
#: A request counts as this much at least: a byte costs a message too.
_LEAST_BYTES = 4096
#: Requests of one agent that may wait; others are dropped, and the agent repeats them.
_MAX_WAITING_PER_AGENT = 256
#: Idle timeout of a transfer slot. An agent asks again for a lost chunk after 5 s.
_SLOT_IDLE_S = 6.0
#: Interval between two checks for idle slots.
_CHECK_S = 1.0

#: Requests by agent, in the order in which they came; one that is repeated before it is answered counts once.
_Queue = dict[str, dict[BlobRequest, None]]


@dataclass
class _Slot:
    """Transfer slot of one agent that is sent a bundle."""

    asked_s: float
    sent_bytes: int = 0

    def touch(self, now_s: float) -> None:
        """Note that the agent still asks."""
        self.asked_s = now_s

    def count(self, size: int) -> int:
        """Count bytes that were sent; returns their sum."""
        self.sent_bytes += size
        return self.sent_bytes


class BlobServer:
    """Serves the added blobs. `send(agent, payload)` publishes one chunk on that agent's `down/blob`."""

    def __init__(
        self,
        send: Callable[[str, bytes], None],
        *,
        rate_bytes_per_s: float = DEFAULT_RATE_BYTES_PER_S,
        at_once: int = DEFAULT_AT_ONCE,
    ) -> None:
        """`at_once` agents are sent a bundle at the same time; more, as far as these leave the rate unused."""
        self._send = send
        self._rate, self._at_once = rate_bytes_per_s, at_once
        self._burst = max(_BURST_BYTES, rate_bytes_per_s / 8)
        self._blobs: dict[str, bytes | mmap.mmap] = {}
        self._waiting: _Queue = {}
        self._waiting_small: _Queue = {}
        #: The rest of a round in which each waiting agent is sent one chunk.
        self._round: deque[tuple[str, _Queue]] = deque()
        #: Bytes of small blobs left to agents before others' bundles, where some were used.
        self._ahead: dict[str, float] = {}
        self._slots: dict[str, _Slot] = {}
        self._allowance = self._burst
        self._filled_s: float | None = None
        self._checked_s = float("-inf")
        #: Bytes sent, by agent and blob.
        self.sent: dict[tuple[str, str], int] = {}

    def add(self, data: bytes) -> BlobReference:
        """Serve `data` from memory."""
        reference = BlobReference(sha256=hashlib.sha256(data).hexdigest(), size=len(data))
        self._blobs[reference.sha256] = data
        return reference

    def add_file(self, path: Path, sha256: str) -> BlobReference:
        """Serve a file whose hash is known, mapped and not read."""
        try:
            with path.open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise UsageError(f"{path} cannot be served: {reason_of(error)}; check the file and its rights") from None
        self._blobs[sha256] = mapped
        return BlobReference(sha256=sha256, size=len(mapped))

    def serves(self, sha256: str) -> bool:
        """Whether there is a blob of that hash."""
        return sha256 in self._blobs

    def request(self, agent: str, request: BlobRequest) -> None:
        """Queue a request; `ProtocolError` where the blob or its bytes do not exist, and beyond the limit per agent."""
        blob = self._blobs.get(request.sha256)
        if blob is None:
            raise ProtocolError(f"{agent} asks for blob {request.sha256[:12]}, which is not served; it is dropped")
        if request.offset >= len(blob):
            raise ProtocolError(
                f"{agent} asks for byte {request.offset} of blob {request.sha256[:12]}, which has {len(blob)}; "
                "it is dropped"
            )
        queue = self._waiting_small if len(blob) <= _SMALL_BYTES else self._waiting
        waiting = queue.setdefault(agent, {})
        if len(waiting) >= _MAX_WAITING_PER_AGENT and request not in waiting:
            raise ProtocolError(f"{agent} has {len(waiting)} blob requests waiting; this one is dropped")
        waiting[request] = None

    @property
    def waiting(self) -> int:
        """Number of requests that wait to be answered."""
        return sum(len(requests) for queue in (self._waiting, self._waiting_small) for requests in queue.values())

    def pump(self, now_s: float) -> None:
        """Answer as many requests as the rate allows."""
        if self._filled_s is not None:
            added = (now_s - self._filled_s) * self._rate
            self._allowance = min(self._burst, self._allowance + added)
            ahead = {agent: left + _AHEAD_SHARE * added for agent, left in self._ahead.items()}
            self._ahead = {agent: left for agent, left in ahead.items() if left < _AHEAD_BYTES}
        self._filled_s = now_s
        self._free_idle_slots(now_s)
        while self._allowance > 0 and (turn := self._next_turn(now_s)) is not None:
            if not self._answer(*turn):
                # The queue is full or the broker away: agents ask again.
                self._waiting.clear()
                self._waiting_small.clear()
                return

    def _next_turn(self, now_s: float) -> tuple[str, _Queue] | None:
        """Return the agent that is sent the next chunk, with its queue; None where no agent waits."""
        ahead = next((agent for agent in self._waiting_small if self._ahead.get(agent, _AHEAD_BYTES) > 0), None)
        if ahead is not None:
            self._waiting_small[ahead] = self._waiting_small.pop(ahead)  # then the next one's
            return ahead, self._waiting_small
        while True:
            if not self._round:
                self._round.extend((agent, self._waiting_small) for agent in self._waiting_small)
                self._round.extend((agent, self._waiting) for agent in self._turns(now_s))
            if not self._round:
                return None
            agent, queue = self._round.popleft()
            if agent in queue:
                return agent, queue

    def _turns(self, now_s: float) -> list[str]:
        """List the agents that are sent one chunk each: those with a slot; where these want nothing, the next one."""
        beside = (agent for agent in self._waiting if agent not in self._slots)
        while len(self._slots) < self._at_once and (following := next(beside, None)) is not None:
            self._slots[following] = _Slot(now_s)
        if len(self._waiting) < len(self._slots):
            turns = [agent for agent in self._waiting if agent in self._slots]
        else:
            turns = [agent for agent in self._slots if agent in self._waiting]
        return turns or list(islice(self._waiting, 1))

    def _free_idle_slots(self, now_s: float) -> None:
        if now_s - self._checked_s < _CHECK_S:
            return
        self._checked_s = now_s
        for agent, slot in list(self._slots.items()):
            if agent in self._waiting:
                slot.touch(now_s)
            elif now_s - slot.asked_s > _SLOT_IDLE_S:
                del self._slots[agent]

    def _answer(self, agent: str, queue: _Queue) -> bool:
        """Answer an agent's first request; False where nothing can be sent now."""
        requests = queue[agent]
        request = next(iter(requests))
        blob = self._blobs[request.sha256]
        data = blob[request.offset : request.offset + request.length]
        try:
            self._send(agent, encode_chunk(BlobChunk(request.sha256, request.offset, data)))
        except TransportError:
            return False
        del requests[request]
        cost = max(len(data), _LEAST_BYTES)
        self._allowance -= cost
        ahead = self._ahead.get(agent, _AHEAD_BYTES)
        if queue is self._waiting_small and ahead > 0:
            self._ahead[agent] = ahead - cost
        key = (agent, request.sha256)
        self.sent[key] = self.sent.get(key, 0) + len(data)
        slot = self._slots.get(agent) if queue is self._waiting else None
        if slot is not None and slot.count(len(data)) >= len(blob):
            # It was sent the whole blob; if it asks on, it goes to the end of the queue.
            del self._slots[agent]
            queue[agent] = queue.pop(agent)
        if not requests:
            del queue[agent]
        return True
