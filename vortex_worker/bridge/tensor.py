"""torch tensors over arena memory, and arena memory for torch tensors.

Handle → tensor is one crossing: the core checks the handle and fills a DLPack capsule, and torch
adopts it. Tensor → handle copies nothing when the tensor lies in the arena already, and once
otherwise, in its own dtype: bfloat16 and float8 as much as float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from operator import index
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.dlpack import from_dlpack

from vortex_worker._core.arena import Arena
from vortex_worker._core.dlpack import Importer
from vortex_worker._core.handle import MAX_NDIM, TensorHandle
from vortex_worker.errors import InvalidHandle

#: dtype numbers of the wire → torch's dtypes.
DTYPES: dict[int, torch.dtype] = {
    1: torch.bool,
    2: torch.uint8,
    3: torch.uint16,
    4: torch.uint32,
    5: torch.uint64,
    6: torch.int8,
    7: torch.int16,
    8: torch.int32,
    9: torch.int64,
    10: torch.float16,
    11: torch.bfloat16,
    12: torch.float32,
    13: torch.float64,
    14: torch.float8_e4m3fn,
    15: torch.float8_e5m2,
    16: torch.complex64,
    17: torch.complex128,
}
DTYPE_NUMBERS: dict[torch.dtype, int] = {dtype: number for number, dtype in DTYPES.items()}

_ALIGN = 64
_MAX_BYTES = (1 << 63) - 1

#: How torch takes memory over: from C to C where it can (torch 2.10), else by capsule. Its own
#: function for capsules, since torch.from_dlpack asks five questions first.
_importer = Importer(getattr(torch.Tensor, "__dlpack_c_exchange_api__", None), torch._C._from_dlpack)
_reads = _importer.direct


class View(Protocol):
    def __call__(self, arena: Arena, handle: TensorHandle, owner: Any = None, /) -> torch.Tensor:
        """The tensor that ``handle`` stands for: no copy, its dtype, shape and strides.

        The arena's mapping and ``owner`` live as long as the tensor, or any view of it, does. Memory
        outside this worker's lease is read-only: writing to the tensor ends the process.

        Raises:
            InvalidHandle: it is malformed, outside the data area, or an Arrow IPC handle.
        """


class Over(Protocol):
    def __call__(self, source: Any, handle: TensorHandle, /) -> torch.Tensor:
        """The tensor that ``handle`` describes in a contiguous buffer, which stays exported as long.

        The handle counts from the buffer's first byte. Of a read-only buffer nobody may write to the
        tensor: torch doesn't know of such.

        Raises:
            InvalidHandle: it is malformed, or reaches outside the buffer; the memory is not aligned
                for the dtype.
            BufferError: the source is not contiguous.
        """


# The core's methods as they are: one more Python frame would be a tenth of the time of a view.
view: View = _importer.view
over: Over = _importer.over


def frombuffer_view(arena: Arena, handle: TensorHandle, owner: Any = None) -> torch.Tensor:
    """``view``, by ``torch.frombuffer`` over the buffer protocol: slower, and what tests compare with."""
    handle.check(arena.data_offset, arena.data_size)
    dtype = DTYPES[handle.dtype]
    if handle.nbytes == 0 or 0 in handle.shape:
        return torch.empty(handle.shape, dtype=dtype)
    flat = torch.frombuffer(arena.buffer(handle.offset, handle.nbytes, owner), dtype=torch.uint8)
    flat = flat[: handle.nbytes // dtype.itemsize * dtype.itemsize].view(dtype)
    if handle.strides is None:
        return flat.view(handle.shape)
    return flat.as_strided(handle.shape, handle.strides)


def locate(arena: Arena, tensor: torch.Tensor) -> TensorHandle | None:
    """The handle of a tensor that lies in the arena, as it lies there; None if it has none.

    None, too, where it begins off a 64-byte boundary: no handle can say so.
    """
    if _reads and type(tensor) is torch.Tensor and tensor.layout is torch.strided:
        # Of the rest, nested and quantized tensors and the like, the framework says that they have no such memory.
        if tensor.is_conj() or tensor.is_neg():
            return None
        try:
            return _importer.locate(arena, tensor)
        except (RuntimeError, TypeError, ValueError, BufferError):
            return None
    if tensor.device.type != "cpu" or tensor.layout is not torch.strided or tensor.is_nested:
        return None
    dtype = DTYPE_NUMBERS.get(tensor.dtype)
    if dtype is None or tensor.numel() == 0 or tensor.dim() > MAX_NDIM or tensor.is_conj() or tensor.is_neg():
        return None
    extent = _extent(tensor)
    offset = arena.locate(tensor.data_ptr(), extent)
    if offset < arena.data_offset or offset % _ALIGN:
        return None
    strides = None if tensor.is_contiguous() else tuple(tensor.stride())
    return TensorHandle(offset, extent, dtype, tuple(tensor.shape), strides)


def is_view_of(arena: Arena, tensor: torch.Tensor, handle: TensorHandle) -> bool:
    """Whether a tensor is exactly what ``handle`` stands for: that memory, dtype, shape and strides."""
    mine = locate(arena, tensor)
    if mine is None or (mine.offset, mine.dtype, mine.shape) != (handle.offset, handle.dtype, handle.shape):
        return False
    return tuple(tensor.stride()) == handle.strides if handle.strides is not None else mine.strides is None


def empty(arena: Arena, offset: int, shape: Sequence[int], dtype: torch.dtype, owner: Any) -> torch.Tensor:
    """An uninitialised tensor in C order at ``offset``, where ``nbytes_of`` it were allocated."""
    return view(arena, TensorHandle(offset, nbytes_of(shape, dtype), number_of(dtype), tuple(shape)), owner)


def store(arena: Arena, tensor: torch.Tensor, allocate: Callable[[int], tuple[int, Any]]) -> tuple[TensorHandle, Any]:
    """Copy a tensor into the arena: its handle, in C order, and what owns the memory.

    One ``memcpy`` when it is contiguous on the CPU, one strided copy when it isn't. From a GPU, one
    asynchronous copy, at full speed into a lease that ``device.pin`` has registered, which has ended
    before this returns.

    Args:
        allocate: gives ``(offset, owner)`` of memory for so many bytes.

    Raises:
        TypeError: a kind of tensor that has no plain memory, or a dtype that can't travel.
        OutOfArena: from ``allocate``.
    """
    require_plain(tensor)
    if not tensor.numel():
        offset, owner = allocate(0)
        return TensorHandle(offset, 0, number_of(tensor.dtype), tuple(tensor.shape)), owner
    tensor = tensor.detach().resolve_conj().resolve_neg()
    nbytes = nbytes_of(tensor.shape, tensor.dtype)
    offset, owner = allocate(nbytes)
    handle = TensorHandle(offset, nbytes, number_of(tensor.dtype), tuple(tensor.shape))
    if tensor.device.type == "cpu" and tensor.is_contiguous():
        arena.copy_from(offset, tensor.data_ptr(), nbytes)
        return handle, owner
    target = view(arena, handle, owner)
    if tensor.device.type == "cuda":
        target.copy_(tensor, non_blocking=True)
        torch.cuda.current_stream(tensor.device).synchronize()
    else:
        target.copy_(tensor)
    return handle, owner


def as_tensor(value: Any) -> torch.Tensor:
    """A tensor of a tensor or array: NumPy's, or anything with ``__array__`` or ``__dlpack__``.

    No copy but of what a tensor can't be over: read-only memory, negative strides, or such as are
    not whole elements.

    Raises:
        TypeError: it is no such thing, or of a dtype that torch lacks.
    """
    if isinstance(value, torch.Tensor):
        return value
    if hasattr(value, "__array__"):
        array = np.asarray(value)
        plain = array.flags.writeable and all(s >= 0 and s % array.itemsize == 0 for s in array.strides)
        return torch.from_numpy(array if plain else array.copy())
    if hasattr(value, "__dlpack__"):
        return from_dlpack(value)
    raise TypeError(
        f"{type(value).__name__} can't be sent to a worker: it takes tensors, arrays, resident objects, "
        "None, bool, int, float, str, bytes, and lists and dicts of these"
    )


def require_plain(tensor: torch.Tensor) -> None:
    """Raise TypeError unless the tensor has dense memory, and a dtype and dimensions that can travel."""
    if tensor.is_quantized:
        raise TypeError("a quantized tensor can't travel: dequantize it first")
    if tensor.is_nested:
        raise TypeError("a nested tensor can't travel: pad it, or send its parts")
    if tensor.layout is not torch.strided:
        raise TypeError(f"a {tensor.layout} tensor can't travel: make it dense first")
    if tensor.device.type == "meta":
        raise TypeError("a meta tensor has no data")
    if hasattr(tensor, "__tensor_flatten__"):  # a wrapper around others, without memory of its own
        raise TypeError(f"a {type(tensor).__name__} has no plain memory: send the tensors that it is made of")
    if tensor.dim() > MAX_NDIM:
        raise TypeError(f"a tensor of {tensor.dim()} dimensions can't travel: {MAX_NDIM} is the most")
    number_of(tensor.dtype)


def number_of(dtype: torch.dtype) -> int:
    """The wire's number of ``dtype``. TypeError if it has none."""
    number = DTYPE_NUMBERS.get(dtype)
    if number is None:
        raise TypeError(f"dtype {dtype} can't travel: {', '.join(str(d) for d in DTYPE_NUMBERS)} can")
    return number


def nbytes_of(shape: Sequence[int], dtype: torch.dtype) -> int:
    """Bytes of a tensor in C order.

    Raises:
        InvalidHandle: a dimension is negative or no whole number, or the product is absurd.
    """
    try:
        sizes = [index(size) for size in shape]
    except TypeError:
        sizes = [-1]
    if any(size < 0 for size in sizes):
        raise InvalidHandle(f"shape is {list(shape)!r:.200}: it takes whole numbers, 0 or more")
    nbytes = math.prod(sizes) * dtype.itemsize
    if nbytes > _MAX_BYTES:
        raise InvalidHandle(f"shape {sizes!r:.200} of {dtype} takes {nbytes:.3g} bytes: no memory is that large")
    return nbytes


def _extent(tensor: torch.Tensor) -> int:
    """Bytes from the first element to behind the furthest."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()
