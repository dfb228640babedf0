"""Messages to bytes and back. Whatever does not parse is a `ProtocolError` of one line."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from fleet_protocol.errors import ProtocolError
from fleet_protocol.messages import Message, Task, TaskUpdate

#: No JSON message is larger; the largest, a result with all its raw times, stays below 16 KiB.
MAX_JSON_BYTES = 64 * 1024
#: Payload of one blob chunk.
MAX_CHUNK_BYTES = 64 * 1024
_CHUNK_HEADER = struct.Struct(">32sQ")

M = TypeVar("M", bound=Message)


def encode(message: Message) -> bytes:
    """JSON without the fields that hold their defaults, except what tells message kinds apart."""
    fields = message.model_dump(mode="json", exclude_defaults=True)
    for tag in ("schema_version", "kind", "op"):
        if tag in type(message).model_fields:
            fields[tag] = getattr(message, tag)
    return _adapter(dict[str, Any]).dump_json(fields)


def decode(kind: type[M], payload: bytes) -> M:
    """The message of class `kind` in `payload`; `ProtocolError` where there is none."""
    message: M = _validate(kind, payload)
    return message


def decode_task(payload: bytes) -> Task:
    """What stands on `down/task`."""
    task: Task = _validate(Task, payload)
    return task


def decode_task_update(payload: bytes) -> TaskUpdate:
    """What stands on `up/task`."""
    update: TaskUpdate = _validate(TaskUpdate, payload)
    return update


@dataclass(frozen=True, slots=True)
class BlobChunk:
    """Bytes of a blob from `offset` on, on `down/blob`."""

    sha256: str
    offset: int
    data: bytes


def encode_chunk(chunk: BlobChunk) -> bytes:
    """32 bytes of hash, 8 bytes of offset (big-endian), then the data."""
    return _CHUNK_HEADER.pack(bytes.fromhex(chunk.sha256), chunk.offset) + chunk.data


def decode_chunk(payload: bytes) -> BlobChunk:
    """The chunk in `payload`; `ProtocolError` where its size is impossible."""
    if not _CHUNK_HEADER.size < len(payload) <= _CHUNK_HEADER.size + MAX_CHUNK_BYTES:
        raise ProtocolError(
            f"a blob chunk has a {_CHUNK_HEADER.size}-byte header and 1 to {MAX_CHUNK_BYTES} bytes of data, "
            f"this one is {len(payload)} bytes long; it is dropped"
        )
    digest, offset = _CHUNK_HEADER.unpack_from(payload)
    return BlobChunk(digest.hex(), offset, payload[_CHUNK_HEADER.size :])


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _validate(kind: Any, payload: bytes) -> Any:
    if len(payload) > MAX_JSON_BYTES:
        raise ProtocolError(f"a message has at most {MAX_JSON_BYTES} bytes, this one {len(payload)}; it is dropped")
    try:
        return _adapter(kind).validate_json(payload)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "message"
        raise ProtocolError(f"message refused: {where}: {first['msg']}"[:300]) from None
