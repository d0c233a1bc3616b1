"""Arrow's IPC format, read without trust: where in some bytes a tensor lies, and in what shape.

The bytes may be shared memory that its writer can still change, so nothing is parsed where it lies:
each message's metadata is copied out once, then checked, and only the copy is used. The values
themselves are never looked at. What is copied is small and recurs, so its parsing is remembered.

::

    stream    message (Schema) · message (RecordBatch) · end
    message   0xFFFFFFFF · i32 size · metadata[size], a FlatBuffers table "Message" · body
    end       0xFFFFFFFF · 0, or the end of the bytes

https://arrow.apache.org/docs/format/Columnar.html, "Serialization and Interprocess Communication";
https://arrow.apache.org/docs/format/CanonicalExtensions.html, "Fixed shape tensor". Field numbers
are those of Message.fbs, Schema.fbs and Tensor.fbs there.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from functools import lru_cache

import pyarrow as pa

from vortex_worker._core.handle import itemsize
from vortex_worker.bridge.flatbuffers import Table, root
from vortex_worker.errors import InvalidHandle

_MAX_METADATA = 256 << 10  # 256 KiB: a message of one column takes well under one
_PREFIX = struct.Struct("<Ii")
_MARKER = 0xFFFFFFFF
_SCHEMA, _RECORD_BATCH, _TENSOR = 1, 3, 4  # MessageHeader
_LITTLE = 0

#: Arrow's plain numbers → dtype numbers of the wire.
_DTYPES = {
    pa.uint8(): 2, pa.uint16(): 3, pa.uint32(): 4, pa.uint64(): 5,
    pa.int8(): 6, pa.int16(): 7, pa.int32(): 8, pa.int64(): 9,
    pa.float16(): 10, pa.float32(): 12, pa.float64(): 13,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Layout:
    """A tensor in some bytes: ``nbytes`` at ``start``; strides in elements, None for C order."""

    start: int
    nbytes: int
    dtype: int
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class _Column:
    """A schema's only column: what each row is."""

    dtype: int
    row: tuple[int, ...] = ()  # as it lies in memory
    permutation: tuple[int, ...] | None = None  # of the row's dimensions
    nested: bool = False  # a fixed-shape tensor: a list array around an array of values


@dataclass(frozen=True, slots=True)
class _Batch:
    """A record batch: lengths of its arrays, and the ranges of its buffers in the body."""

    rows: int
    nodes: tuple[tuple[int, int], ...]  # length, nulls
    buffers: tuple[tuple[int, int], ...]  # offset, size


def find_tensor(data: memoryview) -> Layout:
    """The tensor in an IPC stream of one record batch with one column, or in a tensor message.

    Args:
        data: contiguous bytes.

    Raises:
        InvalidHandle: it is neither, is truncated or malformed, or holds what no tensor can view.
    """
    first = _message(data, 0)
    if first is None:
        raise InvalidHandle("the Arrow IPC stream ends before its schema")
    content, start, end = first
    if isinstance(content, Layout):
        return _in_body(content, start, end)
    if not isinstance(content, _Column):
        raise InvalidHandle("the Arrow IPC stream does not begin with its schema")
    second = _message(data, end)
    if second is None:
        batch, start = _Batch(0, ((0, 0),) * (1 + content.nested), ((0, 0),) * (2 + content.nested)), end
    else:
        got, start, end = second
        if not isinstance(got, _Batch):
            raise InvalidHandle("the Arrow IPC stream has no record batch behind its schema")
        batch = got
        if _message(data, end) is not None:
            raise InvalidHandle("the Arrow IPC stream has more than one record batch: combine them first")
    return _in_body(_column_layout(content, batch), start, end)


def _message(data: memoryview, at: int) -> tuple[_Column | _Batch | Layout, int, int] | None:
    """What the message at ``at`` says, and where its body begins and ends; None at the stream's end."""
    left = len(data) - at
    if left == 0:
        return None
    if left < _PREFIX.size:
        raise InvalidHandle(f"the Arrow IPC data is truncated: {left} bytes of a message at byte {at}")
    marker, size = _PREFIX.unpack_from(data, at)
    if (marker == _MARKER and size == 0) or (marker == 0 and at):  # 0 alone: the end, before version 0.15
        return None
    if marker != _MARKER:
        raise InvalidHandle(f"no Arrow IPC message at byte {at}: it takes an IPC stream or a tensor message")
    if not 0 < size <= _MAX_METADATA:
        raise InvalidHandle(f"an Arrow IPC message has {size} bytes of metadata: at most {_MAX_METADATA} are read")
    start = at + _PREFIX.size + size
    if start > len(data):
        raise InvalidHandle(f"the Arrow IPC data is truncated: a message reaches to {start} of {len(data)} bytes")
    content, body = _parse(bytes(data[at + _PREFIX.size : start]))
    if body > len(data) - start:
        raise InvalidHandle(f"the Arrow IPC data is truncated: a body of {body} bytes, {len(data) - start} are there")
    return content, start, start + body


@lru_cache(maxsize=32)
def _parse(metadata: bytes) -> tuple[_Column | _Batch | Layout, int]:
    """What a message's metadata says, and how long its body is."""
    try:
        message = root(metadata)
        kind, header, body = message.u8(1), message.table(2), message.i64(3)
        if body < 0 or header is None:
            raise InvalidHandle("malformed Arrow IPC metadata: a negative body, or no header")
        if kind == _SCHEMA:
            return _column(header, metadata), body
        if kind == _RECORD_BATCH:
            return _batch(header), body
        if kind == _TENSOR:
            return _tensor(header), body
    except (struct.error, pa.ArrowException, OSError, ValueError, TypeError, KeyError, OverflowError) as error:
        raise InvalidHandle(f"malformed Arrow IPC metadata: {error}") from None
    raise InvalidHandle(f"an Arrow IPC message of kind {kind}: only schema, record batch and tensor can be viewed")


def _column(header: Table, metadata: bytes) -> _Column:
    if header.i16(0) != _LITTLE:
        raise InvalidHandle("the Arrow values are big-endian: only little-endian ones can be viewed")
    schema = pa.ipc.read_schema(pa.py_buffer(_PREFIX.pack(_MARKER, len(metadata)) + metadata))
    if len(schema) != 1:
        raise InvalidHandle(f"the Arrow IPC stream has {len(schema)} columns: it must have one")
    kind = schema.field(0).type
    if not isinstance(kind, pa.FixedShapeTensorType):
        return _Column(_number(kind))
    row = tuple(kind.shape)
    if kind.storage_type.list_size != math.prod(row):
        raise InvalidHandle(f"an Arrow tensor of shape {list(row)} in lists of {kind.storage_type.list_size}")
    permutation = None if kind.permutation is None else tuple(kind.permutation)
    if permutation is not None and sorted(permutation) != list(range(len(row))):
        raise InvalidHandle(f"an Arrow tensor's permutation is {list(permutation)}: not one of {len(row)} dimensions")
    return _Column(_number(kind.value_type), row, permutation, nested=True)


def _number(kind: pa.DataType) -> int:
    if pa.types.is_boolean(kind):
        raise InvalidHandle("Arrow keeps booleans as bits, which no tensor can view: cast them to uint8 first")
    number = _DTYPES.get(kind)
    if number is None:
        raise InvalidHandle(f"an Arrow column of {kind} is no tensor: it takes plain numbers or fixed-shape tensors")
    return number


def _batch(header: Table) -> _Batch:
    if header.table(3) is not None:
        raise InvalidHandle("the Arrow record batch is compressed: only uncompressed values can be viewed")
    return _Batch(header.i64(0), header.pairs(1), header.pairs(2))


def _tensor(header: Table) -> Layout:
    type_, dims, strides, place = header.table(1), header.tables(2), header.longs(3), header.pair(4)
    if type_ is None or place is None:
        raise InvalidHandle("malformed Arrow IPC metadata: a tensor without type or data")
    kind = header.u8(0)
    if kind == 2:  # Int
        bits, signed = type_.i32(0), type_.u8(1)
        dtype = {8: 2, 16: 3, 32: 4, 64: 5}[bits] + 4 * bool(signed)
    elif kind == 3:  # FloatingPoint
        dtype = {0: 10, 1: 12, 2: 13}[type_.i16(0)]
    else:
        raise InvalidHandle("the Arrow tensor is not one of plain numbers")
    shape, size = tuple(dim.i64(0) for dim in dims), itemsize(dtype)
    if any(n < 0 for n in shape) or any(stride % size for stride in strides):
        raise InvalidHandle(f"the Arrow tensor's shape {list(shape)} or strides {list(strides)} can't be viewed")
    if strides and len(strides) != len(shape):
        raise InvalidHandle(f"the Arrow tensor has {len(shape)} dimensions and {len(strides)} strides")
    start, nbytes = place
    if not strides and math.prod(shape) * size > nbytes:
        raise InvalidHandle(f"the Arrow tensor's shape {list(shape)} takes more than its {nbytes} bytes")
    if not strides:
        return Layout(start, math.prod(shape) * size, dtype, shape)
    return Layout(start, nbytes, dtype, shape, tuple(stride // size for stride in strides))


def _column_layout(column: _Column, batch: _Batch) -> Layout:
    row = math.prod(column.row)
    lengths = (batch.rows, batch.rows * row) if column.nested else (batch.rows,)
    if len(batch.nodes) != len(lengths) or len(batch.buffers) != 1 + len(lengths):
        raise InvalidHandle("the Arrow record batch does not match its schema")
    for (length, nulls), expected in zip(batch.nodes, lengths, strict=True):
        if nulls:
            raise InvalidHandle(f"the Arrow column has {nulls} nulls, and tensors have none: fill them first")
        if length != expected or length < 0:
            raise InvalidHandle(f"the Arrow record batch has {length} values where its schema has {expected}")
    start, available = batch.buffers[-1]
    nbytes = lengths[-1] * itemsize(column.dtype)
    if nbytes > available:
        raise InvalidHandle(f"the Arrow column takes {nbytes} bytes, of which {available} are there")
    shape = (batch.rows, *column.row)
    if column.permutation is None:
        return Layout(start, nbytes, column.dtype, shape)
    # Dimension i of what is meant is dimension permutation[i] of what lies there.
    order = (0, *(1 + dim for dim in column.permutation))
    strides = [math.prod(max(n, 1) for n in shape[i + 1 :]) for i in range(len(shape))]
    return Layout(start, nbytes, column.dtype, tuple(shape[i] for i in order), tuple(strides[i] for i in order))


def _in_body(layout: Layout, start: int, end: int) -> Layout:
    """The layout, counted from the data's beginning instead of its body's."""
    if layout.start < 0 or layout.nbytes < 0 or layout.start + layout.nbytes > end - start:
        raise InvalidHandle(
            f"the Arrow values, {layout.nbytes} bytes at {layout.start}, reach out of their body of {end - start} bytes"
        )
    return Layout(start + layout.start, layout.nbytes, layout.dtype, layout.shape, layout.strides)
