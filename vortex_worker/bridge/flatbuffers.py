"""FlatBuffers tables, read from private bytes with every offset checked.

A table begins with a signed distance back to its vtable, which says for each field where it is;
0, or a vtable too short for it, means that the field has its default, here 0 or nothing.
https://flatbuffers.dev/internals/

Raises ValueError, or struct.error where a read would leave the bytes. Nothing here recurses.
"""

from __future__ import annotations

import struct

_U16 = struct.Struct("<H")
_I16 = struct.Struct("<h")
_I32 = struct.Struct("<i")
_U32 = struct.Struct("<I")
_I64 = struct.Struct("<q")
_PAIR = struct.Struct("<qq")


class Table:
    """One table. A field is named by its number in the schema."""

    __slots__ = ("_at", "_data", "_vtable", "_vtable_size")

    def __init__(self, data: bytes, at: int) -> None:
        self._data = data
        self._at = at
        self._vtable = at - int(self._read(_I32, at))
        self._vtable_size = int(self._read(_U16, self._vtable))

    def _read(self, kind: struct.Struct, at: int) -> int:
        if at < 0:  # struct would count from the end
            raise ValueError("an offset leaves the metadata")
        value: int = kind.unpack_from(self._data, at)[0]
        return value

    def _field(self, number: int) -> int:
        """Where a field is; 0: it is not there."""
        entry = 4 + 2 * number
        if entry + 2 > self._vtable_size:
            return 0
        offset = self._read(_U16, self._vtable + entry)
        return self._at + offset if offset else 0

    def _scalar(self, kind: struct.Struct, number: int) -> int:
        at = self._field(number)
        return self._read(kind, at) if at else 0

    def u8(self, number: int) -> int:
        at = self._field(number)
        return self._data[at] if 0 < at < len(self._data) else 0

    def i16(self, number: int) -> int:
        return self._scalar(_I16, number)

    def i32(self, number: int) -> int:
        return self._scalar(_I32, number)

    def i64(self, number: int) -> int:
        return self._scalar(_I64, number)

    def table(self, number: int) -> Table | None:
        """The table that a field points to, or None."""
        at = self._field(number)
        return Table(self._data, at + self._read(_U32, at)) if at else None

    def pair(self, number: int) -> tuple[int, int] | None:
        """A struct of two i64 in the table itself, or None."""
        at = self._field(number)
        if not at:
            return None
        a, b = _PAIR.unpack_from(self._data, at)
        return a, b

    def _vector(self, number: int, item: int) -> tuple[int, int]:
        """Where a vector's items of ``item`` bytes begin, and how many there are."""
        at = self._field(number)
        if not at:
            return 0, 0
        at += self._read(_U32, at)
        count = self._read(_U32, at)
        if count * item > len(self._data) - at - 4:
            raise ValueError("a vector leaves the metadata")
        return at + 4, count

    def pairs(self, number: int) -> tuple[tuple[int, int], ...]:
        """A vector of structs of two i64."""
        at, count = self._vector(number, _PAIR.size)
        return tuple((a, b) for a, b in _PAIR.iter_unpack(self._data[at : at + count * _PAIR.size]))

    def longs(self, number: int) -> tuple[int, ...]:
        """A vector of i64."""
        at, count = self._vector(number, _I64.size)
        return tuple(value for (value,) in _I64.iter_unpack(self._data[at : at + count * _I64.size]))

    def tables(self, number: int) -> tuple[Table, ...]:
        """A vector of tables."""
        at, count = self._vector(number, _U32.size)
        return tuple(Table(self._data, at + 4 * i + self._read(_U32, at + 4 * i)) for i in range(count))


def root(data: bytes) -> Table:
    """The table that some bytes begin with a distance to."""
    return Table(data, _U32.unpack_from(data)[0])
