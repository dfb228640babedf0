"""Read what a TFLite file declares, without generated bindings: these follow any offset, wherever it leads.

Slots are the positions of fields in TFLite's schema (`tensorflow/compiler/mlir/lite/schema/schema.fbs`).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

#: Operators, tensors, buffers and the like of one file, at most.
_MOST_ITEMS = 1_000_000
_CUSTOM, _DELEGATE = 32, 51
#: The offset of a buffer that is in the file's tables is 0 or 1.
_INSIDE = 1
# Slots of the tables.
_CODES, _SUBGRAPHS, _BUFFERS, _EXTERNAL_GROUPS, _EXTERNAL_BUFFERS = 1, 2, 4, 8, 9
_OLD_CODE, _CUSTOM_CODE, _CODE = 0, 1, 3
_TENSORS, _INPUTS = 0, 1
_SHAPE, _NAME, _SHAPE_SIGNATURE = 0, 3, 7
_DATA, _OFFSET = 0, 1


class BrokenTableError(ValueError):
    """An offset or a length leads out of the file."""


@dataclass(frozen=True)
class TfliteInput:
    """One input; None is a side that the caller may choose."""

    name: str
    sides: tuple[int | None, ...]


@dataclass(frozen=True)
class TfliteFacts:
    """What a TFLite file declares."""

    inputs: tuple[TfliteInput, ...]
    custom_operators: tuple[str, ...]
    has_outside_weights: bool


def read_tflite(content: bytes) -> TfliteFacts:
    """Read inputs, operator codes and the places of all weights; `BrokenTableError` where the file is damaged."""
    model = _Table(content, _read(content, "<I", 0))
    codes = model.tables(_CODES)
    custom = [code.text(_CUSTOM_CODE) or "without a name" for code in codes if _builtin(code) in (_CUSTOM, _DELEGATE)]
    outside = model.has(_EXTERNAL_GROUPS) or model.has(_EXTERNAL_BUFFERS)
    for buffer in model.tables(_BUFFERS):
        outside = outside or buffer.number(_OFFSET, "<Q") > _INSIDE
        buffer.vector(_DATA, 1)
    subgraphs = model.tables(_SUBGRAPHS)
    if not subgraphs:
        raise BrokenTableError("it has no graph")
    tensors = subgraphs[0].tables(_TENSORS)
    numbers = subgraphs[0].integers(_INPUTS)
    if not all(0 <= number < len(tensors) for number in numbers):
        raise BrokenTableError("an input is no tensor")
    return TfliteFacts(tuple(_input(tensors[number]) for number in numbers), tuple(custom), outside)


def _builtin(code: _Table) -> int:
    """Return the operator's number: newer ones do not fit the first of two fields."""
    return max(code.number(_OLD_CODE, "<b"), code.number(_CODE, "<i"))


def _input(tensor: _Table) -> TfliteInput:
    sides = tensor.integers(_SHAPE_SIGNATURE) or tensor.integers(_SHAPE)
    return TfliteInput(tensor.text(_NAME), tuple(side if side > 0 else None for side in sides))


class _Table:
    """One table; slots count from 0 in the order of the schema."""

    def __init__(self, data: bytes, position: int) -> None:
        self._data, self._position = data, position
        self._layout = position - _read(data, "<i", position)
        self._layout_size = _read(data, "<H", self._layout)

    def has(self, slot: int) -> bool:
        """Whether a field is there."""
        return bool(self._field(slot))

    def number(self, slot: int, layout: str) -> int:
        """Return a number in `struct`'s layout; 0 where the field is not there."""
        place = self._field(slot)
        return _read(self._data, layout, place) if place else 0

    def vector(self, slot: int, item_bytes: int) -> tuple[int, int]:
        """Return the place of a vector's first item, and the number of items."""
        place = self._field(slot)
        if not place:
            return 0, 0
        start = place + _read(self._data, "<I", place)
        length = _read(self._data, "<I", start)
        if start + 4 + length * item_bytes > len(self._data):
            raise BrokenTableError(f"{length:,} items begin at byte {start:,} of {len(self._data):,}")
        return start + 4, length

    def integers(self, slot: int) -> tuple[int, ...]:
        """Return a vector of 32-bit integers."""
        start, length = self.vector(slot, 4)
        return struct.unpack_from(f"<{length}i", self._data, start) if length else ()

    def tables(self, slot: int) -> list[_Table]:
        """Return a vector of tables."""
        start, length = self.vector(slot, 4)
        if length > _MOST_ITEMS:
            raise BrokenTableError(f"it has {length:,} items in one list")
        places = range(start, start + 4 * length, 4)
        return [_Table(self._data, place + _read(self._data, "<I", place)) for place in places]

    def text(self, slot: int) -> str:
        """Return a text, in printable characters."""
        start, length = self.vector(slot, 1)
        found = self._data[start : start + min(length, 200)].decode(errors="replace")
        return "".join(character if character.isprintable() else "?" for character in found)

    def _field(self, slot: int) -> int:
        """Return the place of a field; 0 where it is not there."""
        entry = 4 + 2 * slot
        if entry + 2 > self._layout_size:
            return 0
        offset = _read(self._data, "<H", self._layout + entry)
        return self._position + offset if offset else 0


def _read(data: bytes, layout: str, position: int) -> int:
    if not 0 <= position <= len(data) - struct.calcsize(layout):
        raise BrokenTableError(f"an offset leads to byte {position:,} of {len(data):,}")
    return int(struct.unpack_from(layout, data, position)[0])
