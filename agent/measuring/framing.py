"""Read and write length-prefixed JSON on the pipes between the agent and its measuring child."""

from __future__ import annotations

import struct
from typing import IO

_MAGIC = b"FNA1"
_HEADER = struct.Struct(">4sI")
#: The largest frame, a request with a deep architecture or a result with its raw times, stays far below.
MAX_FRAME_BYTES = 1024 * 1024


class BadFrameError(Exception):
    """The bytes on a pipe are not frames: the process that wrote them has to be replaced."""


def write_frame(stream: IO[bytes], payload: bytes) -> None:
    """Write one frame and flush it."""
    stream.write(_HEADER.pack(_MAGIC, len(payload)) + payload)
    stream.flush()


def read_frame(stream: IO[bytes]) -> bytes | None:
    """Return the next frame, blocking; None at the end of the stream."""
    header = stream.read(_HEADER.size)
    if len(header) < _HEADER.size:
        return None
    return stream.read(_frame_length(header))


class FrameDecoder:
    """Decodes frames from bytes that arrive in any portions."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Return the frames that `data` completes; `BadFrameError` if a header is invalid."""
        self._buffer += data
        frames = []
        while len(self._buffer) >= _HEADER.size:
            end = _HEADER.size + _frame_length(bytes(self._buffer[: _HEADER.size]))
            if len(self._buffer) < end:
                break
            frames.append(bytes(self._buffer[_HEADER.size : end]))
            del self._buffer[:end]
        return frames


def _frame_length(header: bytes) -> int:
    magic, length = _HEADER.unpack(header)
    if magic != _MAGIC or length > MAX_FRAME_BYTES:
        raise BadFrameError(f"not a frame header: {header!r}")
    return int(length)
