"""Arrow IPC ⇄ torch, without a copy either way.

Formats: IPC streams of one record batch with one column (a ``FixedShapeTensorArray`` or plain
numbers), and IPC tensor messages.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from vortex_worker._core.handle import ARROW_IPC, TensorHandle
from vortex_worker.bridge.arrow_ipc import find_tensor
from vortex_worker.bridge.tensor import over, require_plain

if TYPE_CHECKING:
    from vortex_worker._core.arena import Arena

#: dtypes that Arrow has no plain numbers for.
_FOREIGN = {torch.bool, torch.bfloat16, torch.complex64, torch.complex128}


class ArrowBridge:
    """Between Arrow's bytes and tensors. Holds nothing: one may serve for all."""

    def arrow_to_tensor(self, buffer: Any) -> torch.Tensor:
        """The tensor in an IPC stream or tensor message, as a view of ``buffer``, which it keeps exported.

        A fixed-shape tensor column of n rows gives [n, *shape], its permutation applied; a column of
        plain numbers gives [n]. The bytes may be anybody's, and may change meanwhile: only a checked
        copy of the metadata is used. Of read-only memory nobody may write to the tensor.

        Raises:
            InvalidHandle: it is neither, is malformed or truncated, or can't be viewed without a
                copy: nulls, booleans (bits in Arrow), strings, nested types, several batches or
                columns, compressed or misaligned values.
        """
        data = memoryview(buffer).cast("B")
        found = find_tensor(data)
        handle = TensorHandle(0, found.nbytes, found.dtype, found.shape, found.strides)
        return over(data[found.start : found.start + found.nbytes], handle)

    def tensor_to_arrow(self, tensor: torch.Tensor) -> pa.Array:
        """A tensor as an Arrow array over the same memory, which it keeps alive.

        One dimension gives a plain column, more a ``FixedShapeTensorArray`` of the first.

        Raises:
            TypeError: a dtype that Arrow lacks (bool, bfloat16, float8, complex), not on the CPU, not
                contiguous, without dimensions, or with rows of no elements.
        """
        array = _as_numpy(tensor)
        if array.ndim == 0:
            raise TypeError("a tensor without dimensions is no column: reshape it to [1]")
        kind = pa.from_numpy_dtype(array.dtype)
        values = pa.Array.from_buffers(kind, array.size, [None, pa.py_buffer(array)])
        if array.ndim == 1:
            return values
        if not array.size and array.shape[0]:
            raise TypeError(f"a tensor of shape {list(array.shape)} has rows of no elements: Arrow can't count them")
        rows = pa.FixedSizeListArray.from_arrays(values, max(int(np.prod(array.shape[1:])), 1))
        if 0 in array.shape[1:]:
            rows = rows.cast(pa.list_(kind, 0))
        return pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(kind, array.shape[1:]), rows)

    def write_stream(self, tensor: torch.Tensor, sink: Any) -> int:
        """Write a tensor as an IPC stream of one column into a writable buffer; returns the bytes used.

        Raises:
            TypeError: as ``tensor_to_arrow``.
            ValueError: the buffer is too small, or read-only.
        """
        batch = pa.record_batch([self.tensor_to_arrow(tensor)], names=["tensor"])
        return _write(sink, lambda out: _write_batch(out, batch))

    def write_tensor(self, tensor: torch.Tensor, sink: Any) -> int:
        """Write a tensor as an IPC tensor message into a writable buffer; returns the bytes used.

        Raises:
            TypeError: as ``tensor_to_arrow``, but for the last two.
            ValueError: the buffer is too small, or read-only.
        """
        message = pa.Tensor.from_numpy(_as_numpy(tensor))
        return _write(sink, lambda out: pa.ipc.write_tensor(message, out))

    def store(
        self, arena: Arena, tensor: torch.Tensor, allocate: Callable[[int], tuple[int, Any]]
    ) -> tuple[TensorHandle, Any]:
        """Write a tensor as an IPC stream into the arena: its handle, and what owns the memory. One copy.

        Args:
            allocate: gives ``(offset, owner)`` of memory for so many bytes.

        Raises:
            TypeError: as ``tensor_to_arrow``.
            OutOfArena: from ``allocate``.
        """
        batch = pa.record_batch([self.tensor_to_arrow(tensor)], names=["tensor"])
        counter = pa.MockOutputStream()
        _write_batch(counter, batch)
        size = int(counter.size())
        offset, owner = allocate(size)
        _write(arena.buffer(offset, size), lambda out: _write_batch(out, batch))
        return TensorHandle(offset, size, 0, (), None, ARROW_IPC), owner


def _write_batch(out: Any, batch: pa.RecordBatch) -> None:
    with pa.ipc.new_stream(out, batch.schema) as writer:
        writer.write_batch(batch)


def _write(sink: Any, write: Callable[[Any], None]) -> int:
    target = pa.py_buffer(sink)
    if not target.is_mutable:  # Arrow would abort the process
        raise ValueError(f"the buffer of {target.size} bytes is read-only")
    with pa.FixedSizeBufferWriter(target) as out:
        try:
            write(out)
        except OSError as error:
            raise ValueError(f"the buffer of {target.size} bytes is too small: {error}") from None
        return int(out.tell())


def _as_numpy(tensor: torch.Tensor) -> npt.NDArray[Any]:
    require_plain(tensor)
    if tensor.device.type != "cpu" or not tensor.is_contiguous() or tensor.is_neg():
        raise TypeError("only a contiguous tensor on the CPU can become Arrow without a copy")
    if tensor.dtype in _FOREIGN or (tensor.dtype.is_floating_point and tensor.dtype.itemsize == 1):
        raise TypeError(f"Arrow has no plain numbers of {tensor.dtype}")
    return tensor.detach().numpy()
