"""Reads tables of a flatbuffer by the positions of their fields in its schema, without generated bindings."""

from __future__ import annotations

import struct

from flatbuffers.table import Table

_FIRST_FIELD = 4


class Record:
    """One table; slots count from 0 in the order of the schema."""

    def __init__(self, data: bytes, position: int) -> None:
        self._table = Table(data, position)

    @classmethod
    def root(cls, data: bytes) -> Record:
        return cls(data, struct.unpack_from("<I", data)[0])

    def text(self, slot: int) -> str:
        return self._table.String(self._field(slot)).decode()

    def number(self, slot: int, layout: str) -> int:
        """A number in `struct`'s layout, such as `<B`."""
        return int(struct.unpack_from(layout, self._table.Bytes, self._field(slot))[0])

    def record(self, slot: int) -> Record:
        return Record(self._table.Bytes, self._table.Indirect(self._field(slot)))

    def records(self, slot: int) -> list[Record]:
        start, length = self._vector(slot)
        return [Record(self._table.Bytes, self._table.Indirect(start + 4 * index)) for index in range(length)]

    def floats(self, slot: int) -> list[float]:
        start, length = self._vector(slot)
        return list(struct.unpack_from(f"<{length}f", self._table.Bytes, start))

    def has(self, slot: int) -> bool:
        return bool(self._table.Offset(_FIRST_FIELD + 2 * slot))

    def _field(self, slot: int) -> int:
        assert self.has(slot), f"no field {slot}"
        return int(self._table.Pos + self._table.Offset(_FIRST_FIELD + 2 * slot))

    def _vector(self, slot: int) -> tuple[int, int]:
        offset = self._table.Offset(_FIRST_FIELD + 2 * slot)
        return int(self._table.Vector(offset)), int(self._table.VectorLen(offset))
