"""Tensor handles: where a tensor lies in the arena, in what dtype and shape."""

from cpython.number cimport PyNumber_Index

from vortex_worker.errors import InvalidHandle

MAX_NDIM = VW_MAX_NDIM

#: dtype numbers of the wire (``DType`` in proto/control.proto) → names.
DTYPE_NAMES = {
    1: "bool", 2: "u8", 3: "u16", 4: "u32", 5: "u64", 6: "i8", 7: "i16", 8: "i32", 9: "i64",
    10: "f16", 11: "bf16", 12: "f32", 13: "f64", 14: "f8_e4m3fn", 15: "f8_e5m2", 16: "c64", 17: "c128",
}

cdef enum:
    C_RAW = 0

RAW = C_RAW
ARROW_IPC = 1


def itemsize(dtype):
    """Bytes of one element of dtype number ``dtype``; 0 if there is no such dtype."""
    return vw_itemsize(dtype) if isinstance(dtype, int) and 0 <= dtype < VW_DTYPE_COUNT else 0


cdef class TensorHandle:
    """``TensorHandle(offset, nbytes, dtype, shape, strides=None, encoding=RAW)``

    Args:
        offset: bytes from the arena's first; a multiple of 64.
        nbytes: bytes.
        dtype: number of the dtype; see ``DTYPE_NAMES``.
        shape: elements by dimension, at most 32 dimensions.
        strides: in elements, none negative; None for C order.
        encoding: ``RAW``, or ``ARROW_IPC`` with dtype 0 and no shape.

    It says what somebody claims: ``check`` it before use. Immutable and hashable.

    Raises:
        InvalidHandle: no whole number, or one that doesn't fit its field, or too many dimensions.
    """

    def __cinit__(self, offset, nbytes, dtype, shape=(), strides=None, encoding=RAW):
        cdef Py_ssize_t i, ndim = len(shape)
        if ndim > VW_MAX_NDIM:
            raise InvalidHandle(f"shape has {ndim} dimensions: at most {VW_MAX_NDIM} are accepted")
        if strides is not None and len(strides) != ndim:
            raise InvalidHandle(f"strides are {len(strides)} for {ndim} dimensions: they must be as many")
        try:
            # PyNumber_Index: a float would else be cut off to a whole number.
            self.c.offset = PyNumber_Index(offset)
            self.c.nbytes = PyNumber_Index(nbytes)
            self.c.dtype = PyNumber_Index(dtype)
            self.c.encoding = PyNumber_Index(encoding)
            self.c.ndim = <uint32_t>ndim
            self.c.strided = strides is not None
            for i in range(ndim):
                self.c.shape[i] = PyNumber_Index(shape[i])
                if strides is not None:
                    self.c.strides[i] = PyNumber_Index(strides[i])
        except (OverflowError, TypeError):
            raise InvalidHandle(_misfit(offset, nbytes, dtype, encoding, shape, strides)) from None

    @property
    def offset(self):
        return self.c.offset

    @property
    def nbytes(self):
        return self.c.nbytes

    @property
    def dtype(self):
        return self.c.dtype

    @property
    def encoding(self):
        return self.c.encoding

    @property
    def shape(self):
        return tuple([self.c.shape[i] for i in range(self.c.ndim)])

    @property
    def strides(self):
        """Elements by dimension, or None for C order."""
        return tuple([self.c.strides[i] for i in range(self.c.ndim)]) if self.c.strided else None

    def covers(self, TensorHandle other not None):
        """Whether all of ``other``'s memory is in this one's."""
        return self.c.offset <= other.c.offset and other.c.offset - self.c.offset <= self.c.nbytes and (
            other.c.nbytes <= self.c.nbytes - (other.c.offset - self.c.offset)
        )

    def check(self, offset, size):
        """Raise InvalidHandle unless the handle is well-formed and lies in ``[offset, offset + size)``."""
        self.require(offset, size)

    cdef int require(self, uint64_t offset, uint64_t size) except -1:
        cdef vw_verdict verdict = vw_handle_check(&self.c, offset, size)
        if verdict.problem != VW_OK:
            raise InvalidHandle(_explain(self, verdict, offset, size), {"handle": repr(self)})
        return 0

    cdef int require_raw(self) except -1:
        if self.c.encoding != C_RAW:
            raise InvalidHandle("an Arrow IPC handle is a stream, not a tensor: read it through ArrowBridge")
        return 0

    def _key(self):
        return (self.offset, self.nbytes, self.dtype, self.shape, self.strides, self.encoding)

    def __eq__(self, other):
        return self._key() == other._key() if isinstance(other, TensorHandle) else NotImplemented

    def __hash__(self):
        return hash(self._key())

    def __repr__(self):
        if self.c.encoding == ARROW_IPC:
            return f"<TensorHandle Arrow IPC at {self.offset}, {self.nbytes} bytes>"
        name = DTYPE_NAMES.get(self.dtype, f"dtype {self.dtype}")
        strides = f" strides {self.strides}" if self.c.strided else ""
        return f"<TensorHandle {name}{list(self.shape)}{strides} at {self.offset}, {self.nbytes} bytes>"


def _misfit(offset, nbytes, dtype, encoding, shape, strides):
    # Which number doesn't fit its field. Slow, and only ever run to say so.
    fields = [("offset", offset, 0, 64), ("nbytes", nbytes, 0, 64)]
    fields += [("dtype", dtype, 0, 32), ("encoding", encoding, 0, 32)]
    fields += [(f"shape[{i}]", size, -(1 << 63), 63) for i, size in enumerate(shape)]
    fields += [(f"strides[{i}]", stride, -(1 << 63), 63) for i, stride in enumerate(strides or ())]
    for name, value, least, bits in fields:
        if not hasattr(type(value), "__index__") or not least <= value < 1 << bits:
            return f"{name} is {value!r:.60}: it takes a whole number, {max(least, 0)} to 2**{bits} - 1"
    return "a number changed while it was read"


cdef str _explain(TensorHandle handle, vw_verdict verdict, uint64_t offset, uint64_t size):
    cdef vw_problem problem = verdict.problem
    if problem == VW_BAD_ENCODING:
        return f"encoding is {verdict.found}: it must be {RAW} (raw) or {ARROW_IPC} (Arrow IPC)"
    if problem == VW_BAD_ALIGNMENT:
        return f"offset is {handle.offset}: it must be a multiple of {verdict.accepted}"
    if problem == VW_OUT_OF_REGION:
        return (
            f"offset {handle.offset} + {handle.nbytes} bytes reaches outside the region it must lie in, "
            f"{offset} to {offset + size}"
        )
    if problem == VW_ARROW_HAS_SHAPE:
        return "an Arrow IPC handle must have no dtype, shape or strides: they are in the stream"
    if problem == VW_BAD_DTYPE:
        return f"dtype is {verdict.found}: it must be one of 1 to {VW_DTYPE_COUNT - 1}"
    if problem == VW_BAD_NDIM:
        return f"shape has {verdict.found} dimensions: at most {verdict.accepted} are accepted"
    if problem == VW_BAD_SHAPE:
        return f"shape is {list(handle.shape)}: dimension {verdict.found} is negative"
    if problem == VW_BAD_STRIDE:
        return f"strides are {list(handle.strides)}: stride {verdict.found} is negative"
    if problem == VW_TOO_LARGE:
        return f"shape {list(handle.shape)}, strides {handle.strides} reach further than memory does"
    if problem == VW_SIZE_MISMATCH:
        return (
            f"shape {list(handle.shape)} of {DTYPE_NAMES[handle.dtype]} takes {verdict.found} bytes, "
            f"nbytes is {verdict.accepted}"
        )
    return (
        f"shape {list(handle.shape)} with strides {list(handle.strides)} of {DTYPE_NAMES[handle.dtype]} "
        f"reaches {verdict.found} bytes, nbytes is {verdict.accepted}"
    )
