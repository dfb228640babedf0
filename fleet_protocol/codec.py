"""Encode messages and decode them; a payload that does not parse raises a `ProtocolError` of one line.

A message of a newer minor version may have unknown fields, which are left out. One of a newer version is refused.
`docs/architecture.md` has the rule.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, from_json, to_json

from fleetnas.fleet_protocol.error_text import fault_words
from fleetnas.fleet_protocol.errors import ProtocolError
from fleetnas.fleet_protocol.messages import SCHEMA_MINOR, SCHEMA_VERSION, Message, TaskUpdate
from fleetnas.fleet_protocol.orders import Task

#: No JSON message is larger; the largest, a result with all its raw times, stays below 16 KiB.
MAX_JSON_BYTES = 64 * 1024
#: Payload of one blob chunk.
MAX_CHUNK_BYTES = 64 * 1024
_CHUNK_HEADER = struct.Struct(">32sQ")

M = TypeVar("M", bound=Message)


def encode(message: Message) -> bytes:
    """Return a message as JSON; fields with default values are left out, except those that tell message kinds apart."""
    # The tags have their default values, so they are left out, and put behind the other fields in one step.
    fields = message.__pydantic_serializer__.to_json(message, exclude_defaults=True, exclude={"schema_minor"})
    tags = _tags(type(message), SCHEMA_MINOR)
    return b"".join((fields[:-1], b"," if tags and len(fields) > 2 else b"", tags, b"}"))


def decode(kind: type[M], payload: bytes) -> M:
    """Return the message of class `kind` in `payload`; `ProtocolError` if there is none."""
    message: M = _validate(kind, payload)
    return message


def decode_task(payload: bytes) -> Task:
    """Decode a message on `down/task`; `ProtocolError` if it is none."""
    task: Task = _validate(Task, payload)
    return task


def decode_task_update(payload: bytes) -> TaskUpdate:
    """Decode a message on `up/task`; `ProtocolError` if it is none."""
    update: TaskUpdate = _validate(TaskUpdate, payload)
    return update


@dataclass(frozen=True, slots=True)
class BlobChunk:
    """Bytes of a blob from `offset` on, on `down/blob`."""

    sha256: str
    offset: int
    data: bytes


def encode_chunk(chunk: BlobChunk) -> bytes:
    """Encode a chunk as 32 bytes of hash, 8 bytes of offset (big-endian), then the data."""
    return _CHUNK_HEADER.pack(bytes.fromhex(chunk.sha256), chunk.offset) + chunk.data


def decode_chunk(payload: bytes) -> BlobChunk:
    """Return the chunk in `payload`; `ProtocolError` if its size is impossible."""
    if not _CHUNK_HEADER.size < len(payload) <= _CHUNK_HEADER.size + MAX_CHUNK_BYTES:
        raise ProtocolError(
            f"a blob chunk has a {_CHUNK_HEADER.size}-byte header and 1 to {MAX_CHUNK_BYTES} bytes of data, "
            f"this one is {len(payload)} bytes long; it is dropped"
        )
    digest, offset = _CHUNK_HEADER.unpack_from(payload)
    return BlobChunk(digest.hex(), offset, payload[_CHUNK_HEADER.size :])


@cache
def _tags(kind: type[Message], minor: int) -> bytes:
    """Return the fields that tell message kinds and versions apart, as members of a JSON object."""
    known = kind.model_fields
    tags: dict[str, Any] = {tag: known[tag].default for tag in ("schema_version", "kind", "op") if tag in known}
    if minor and "schema_minor" in known:
        tags["schema_minor"] = minor
    return to_json(tags)[1:-1]


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _validate(kind: Any, payload: bytes) -> Any:
    if len(payload) > MAX_JSON_BYTES:
        raise ProtocolError(f"a message has at most {MAX_JSON_BYTES} bytes, this one {len(payload)}; it is dropped")
    try:
        return _adapter(kind).validate_json(payload)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_input=False)
    version, minor = _version(payload)
    if version > SCHEMA_VERSION:
        raise ProtocolError(
            f"message refused: it is of version {version} of the wire contract and this fleetnas understands version "
            f"{SCHEMA_VERSION}; update the older of the two"
        )
    if version == SCHEMA_VERSION and minor > SCHEMA_MINOR and all(f["type"] == "extra_forbidden" for f in faults):
        return _validate_known(kind, payload, faults)
    raise _refusal(faults)


def _version(payload: bytes) -> tuple[int, int]:
    """Return version and minor version of a message that does not parse; (0, 0) if it has none."""
    try:
        document = from_json(payload)
    except ValueError:
        return 0, 0
    if not isinstance(document, dict):
        return 0, 0
    found = [document.get("schema_version", 0), document.get("schema_minor", 0)]
    version, minor = (number if type(number) is int else 0 for number in found)
    return version, minor


def _validate_known(kind: Any, payload: bytes, unknown: list[ErrorDetails]) -> Any:
    """Parse a message without its unknown fields."""
    document = from_json(payload)
    for fault in unknown:
        place: Any = document
        *path, last = fault["loc"]
        for name in path:
            # The location also names the kind of a message, which is no field.
            is_field = name in place if isinstance(place, dict) else isinstance(place, list)
            if is_field:
                place = place[name]
        place.pop(last, None)
    try:
        return _adapter(kind).validate_json(to_json(document))
    except ValidationError as error:
        raise _refusal(error.errors(include_url=False, include_input=False)) from None


def _refusal(faults: list[ErrorDetails]) -> ProtocolError:
    where = ".".join(str(part) for part in faults[0]["loc"]) or "message"
    return ProtocolError(f"message refused: {where}: {fault_words(faults[0])}"[:300])
