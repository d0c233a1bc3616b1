"""Arrow IPC ⇄ torch, without a copy either way.

Formats: IPC streams with one column (``FixedShapeTensorArray`` or plain numbers), and IPC tensor
messages. See https://arrow.apache.org/docs/format/Columnar.html, "Serialization and IPC" and
https://arrow.apache.org/docs/format/CanonicalExtensions.html, "Fixed shape tensor".
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import torch

from vortex_worker.errors import InvalidHandle

_STREAM = b"\xff\xff\xff\xff"  # the continuation marker that begins every encapsulated message


class ArrowBridge:
    """Between Arrow's bytes and tensors. Holds nothing: one may serve for all."""

    def arrow_to_tensor(self, buffer: Any) -> torch.Tensor:
        """The tensor in an IPC stream or tensor message, as a view of ``buffer``, which it keeps alive.

        A stream must hold one record batch with one column: a fixed-shape tensor column of n rows
        gives [n, *shape]; a column of plain numbers gives [n].

        Raises:
            InvalidHandle: it is neither, is truncated, or can't be viewed without a copy: nulls,
                booleans (bits in Arrow), strings, nested types, several batches or columns.
        """
        source = pa.py_buffer(buffer)
        try:
            return self._read(source)
        except (pa.ArrowException, OSError, ValueError, TypeError, OverflowError) as error:
            raise InvalidHandle(f"not an Arrow IPC stream or tensor message that can be viewed: {error}") from None

    def _read(self, source: pa.Buffer) -> torch.Tensor:
        if source.size < 8 or source.slice(0, 4).to_pybytes() != _STREAM:
            raise InvalidHandle(
                f"{source.size} bytes do not begin with an Arrow IPC message: they must be an IPC stream or a tensor message"
            )
        message = pa.ipc.read_message(source)
        if message.type == "tensor":
            return _from_numpy(pa.ipc.read_tensor(message).to_numpy())
        with pa.ipc.open_stream(source) as reader:
            batches = list(reader)
        if len(batches) != 1 or batches[0].num_columns != 1:
            columns = batches[0].num_columns if batches else 0
            raise InvalidHandle(
                f"the stream holds {len(batches)} record batches and {columns} columns: it must hold one of each"
            )
        batches[0].validate(full=True)
        return self.column_to_tensor(batches[0].column(0))

    def column_to_tensor(self, column: pa.Array) -> torch.Tensor:
        """A view of one array. InvalidHandle where that would take a copy."""
        if column.null_count:
            raise InvalidHandle(f"the column has {column.null_count} nulls: tensors have none; fill them first")
        if isinstance(column, pa.FixedShapeTensorArray):
            return _from_numpy(column.to_numpy_ndarray())
        kind = column.type
        if pa.types.is_boolean(kind):
            raise InvalidHandle("Arrow keeps booleans as bits: cast the column to uint8 first")
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
            raise InvalidHandle(f"a column of {kind} is no tensor: it takes plain numbers or fixed-shape tensors")
        return _from_numpy(column.to_numpy(zero_copy_only=True))

    def tensor_to_arrow(self, tensor: torch.Tensor) -> pa.Array:
        """A tensor as an Arrow array over the same memory, which it keeps alive.

        One dimension gives a plain column, more a ``FixedShapeTensorArray`` of the first.

        Raises:
            TypeError: a dtype that Arrow lacks (bool, bfloat16, float8, complex), not on the CPU, or
                not contiguous.
        """
        array = _to_numpy(tensor)
        if array.ndim == 0:
            raise TypeError("a tensor without dimensions is no column: reshape it to [1]")
        if array.ndim == 1:
            kind = pa.from_numpy_dtype(array.dtype)
            return pa.Array.from_buffers(kind, len(array), [None, pa.py_buffer(array)])
        row = int(np.prod(array.shape[1:]))
        kind = pa.from_numpy_dtype(array.dtype)
        values = pa.Array.from_buffers(kind, array.size, [None, pa.py_buffer(array)])
        storage = pa.FixedSizeListArray.from_arrays(values, row)
        if len(storage) != array.shape[0]:  # rows of no elements can't be counted by their values
            raise TypeError(f"a tensor of shape {list(array.shape)} has empty rows: Arrow can't count them")
        return pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(kind, array.shape[1:]), storage)

    def write_stream(self, tensor: torch.Tensor, sink: Any) -> int:
        """Write a tensor as an IPC stream of one column into a writable buffer; returns the bytes used.

        Raises:
            TypeError: as ``tensor_to_arrow``.
            ValueError: the buffer is too small.
        """
        batch = pa.record_batch([self.tensor_to_arrow(tensor)], names=["tensor"])
        return _write(sink, lambda out: _write_batch(out, batch))

    def write_tensor(self, tensor: torch.Tensor, sink: Any) -> int:
        """Write a tensor as an IPC tensor message into a writable buffer; returns the bytes used.

        Raises:
            TypeError: as ``tensor_to_arrow``.
            ValueError: the buffer is too small.
        """
        message = pa.Tensor.from_numpy(_to_numpy(tensor))
        return _write(sink, lambda out: pa.ipc.write_tensor(message, out))


def _write_batch(out: Any, batch: pa.RecordBatch) -> None:
    with pa.ipc.new_stream(out, batch.schema) as writer:
        writer.write_batch(batch)


def _write(sink: Any, write: Any) -> int:
    with pa.FixedSizeBufferWriter(pa.py_buffer(sink)) as out:
        try:
            write(out)
        except pa.ArrowException as error:
            raise ValueError(f"the buffer of {memoryview(sink).nbytes} bytes is too small: {error}") from None
        written: int = out.tell()
        return written


def _from_numpy(array: np.ndarray[Any, Any]) -> torch.Tensor:
    """A view of a NumPy array, read-only ones too: that the memory may not be written to, the MMU says."""
    if array.dtype.byteorder == ">" or not array.dtype.isnative:
        raise InvalidHandle("the values are big-endian: only little-endian ones can be viewed")
    if array.size == 0:
        return torch.empty(array.shape, dtype=torch.from_numpy(np.empty(0, array.dtype)).dtype)
    if any(stride < 0 for stride in array.strides):
        raise InvalidHandle("negative strides can't be viewed as a tensor")
    flat = np.lib.stride_tricks.as_strided(array, (_extent(array),), (array.itemsize,))
    with_dtype = torch.from_numpy(np.empty(0, array.dtype)).dtype
    base = torch.frombuffer(flat.data.cast("B"), dtype=torch.uint8) if flat.flags.writeable else _readonly(flat)
    return base.view(with_dtype).as_strided(array.shape, tuple(s // array.itemsize for s in array.strides))


def _readonly(flat: np.ndarray[Any, Any]) -> torch.Tensor:
    """torch warns of read-only buffers, and rightly where nothing guards them; here the MMU does."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return torch.frombuffer(flat.data.cast("B"), dtype=torch.uint8)


def _extent(array: np.ndarray[Any, Any]) -> int:
    last = sum((n - 1) * s for n, s in zip(array.shape, array.strides, strict=True))
    return last // array.itemsize + 1


def _to_numpy(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    if tensor.device.type != "cpu" or not tensor.is_contiguous():
        raise TypeError("only a contiguous tensor on the CPU can become Arrow without a copy")
    if tensor.dtype in (torch.bool, torch.bfloat16, torch.complex64, torch.complex128) or "float8" in str(tensor.dtype):
        raise TypeError(f"Arrow has no plain numbers of {tensor.dtype}")
    return tensor.detach().numpy()
