"""Byte ranges of bundles and calibrations for the agents that ask, at a bounded rate."""

from __future__ import annotations

import hashlib
import mmap
from collections import deque
from collections.abc import Callable
from pathlib import Path

from fleet_protocol.codec import BlobChunk, encode_chunk
from fleet_protocol.errors import ProtocolError, TransportError, UsageError
from fleet_protocol.messages import BlobReference, BlobRequest

#: All agents together; a bundle of 30 MB then takes a few seconds and the broker keeps room for messages.
DEFAULT_RATE_BYTES_PER_S = 16 * 1024 * 1024
_BURST_BYTES = 1024 * 1024
#: An agent asks again for what is not answered in time, so what it asks beyond this is dropped.
_MAX_WAITING_PER_AGENT = 256


class BlobServer:
    """Serves what was added. `send(agent, payload)` publishes one chunk on that agent's `down/blob`."""

    def __init__(
        self, send: Callable[[str, bytes], None], *, rate_bytes_per_s: float = DEFAULT_RATE_BYTES_PER_S
    ) -> None:
        self._send = send
        self._rate = rate_bytes_per_s
        self._blobs: dict[str, bytes | mmap.mmap] = {}
        self._waiting: dict[str, deque[BlobRequest]] = {}
        self._allowance = float(_BURST_BYTES)
        self._filled_s: float | None = None
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
            raise UsageError(f"{path} cannot be served: {error}; check the file and its rights") from None
        self._blobs[sha256] = mapped
        return BlobReference(sha256=sha256, size=len(mapped))

    def request(self, agent: str, request: BlobRequest) -> None:
        """Queue a request; `ProtocolError` where it asks for what is not there or for too much at once."""
        blob = self._blobs.get(request.sha256)
        if blob is None:
            raise ProtocolError(f"{agent} asks for blob {request.sha256[:12]}, which is not served; it is dropped")
        if request.offset >= len(blob):
            raise ProtocolError(
                f"{agent} asks for byte {request.offset} of blob {request.sha256[:12]}, which has {len(blob)}; "
                "it is dropped"
            )
        waiting = self._waiting.setdefault(agent, deque())
        if len(waiting) >= _MAX_WAITING_PER_AGENT:
            raise ProtocolError(f"{agent} has {len(waiting)} blob requests waiting; this one is dropped")
        waiting.append(request)

    @property
    def waiting(self) -> int:
        """Requests that wait to be answered."""
        return sum(len(requests) for requests in self._waiting.values())

    def pump(self, now_s: float) -> None:
        """Answer as many requests as the rate allows, one agent after the other."""
        if self._filled_s is not None:
            self._allowance = min(_BURST_BYTES, self._allowance + (now_s - self._filled_s) * self._rate)
        self._filled_s = now_s
        while self._waiting and self._allowance > 0:
            for agent in list(self._waiting):
                waiting = self._waiting[agent]
                if self._allowance > 0 and not self._answer(agent, waiting.popleft()):
                    self._waiting.clear()
                    return
                if not waiting:
                    del self._waiting[agent]

    def _answer(self, agent: str, request: BlobRequest) -> bool:
        data = self._blobs[request.sha256][request.offset : request.offset + request.length]
        try:
            self._send(agent, encode_chunk(BlobChunk(request.sha256, request.offset, data)))
        except TransportError:
            return False  # The queue is full or the broker away: agents ask again.
        self._allowance -= len(data)
        key = (agent, request.sha256)
        self.sent[key] = self.sent.get(key, 0) + len(data)
        return True
