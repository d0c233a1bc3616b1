"""DLPack: memory handed to a framework as its own tensors, without a copy."""

from cpython.buffer cimport PyBuffer_IsContiguous
from cpython.memoryview cimport PyMemoryView_FromObject, PyMemoryView_GET_BUFFER
from cpython.object cimport PyObject
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_IsValid, PyCapsule_New
from cpython.ref cimport Py_XDECREF, Py_XINCREF
from libc.stdint cimport UINT64_MAX, uint64_t
from libc.stdlib cimport free

from vortex_worker.errors import InvalidHandle


cdef extern from "Python.h":
    bint Py_IsInitialized() nogil


cdef extern from "arena.h" nogil:
    void vw_arena_hold(vw_arena *arena)
    void vw_arena_drop(vw_arena *arena)
    uint64_t vw_arena_locate(const vw_arena *arena, const void *address, uint64_t nbytes)


cdef extern from "layout.h" nogil:
    const uint64_t VW_HANDLE_ALIGN


cdef class Importer:
    """``Importer(table, adopt)``: how a framework takes tensors over.

    Args:
        table: its type's ``__dlpack_c_exchange_api__`` (DLPack 1.3; torch has it since 2.10), which
            takes them from C to C; None where there is none.
        adopt: its function from a ``dltensor`` capsule to a tensor, for when there isn't.
    """

    def __cinit__(self, table, adopt):
        self._adopt = adopt
        if PyCapsule_IsValid(table, "dlpack_exchange_api"):
            self._table = <vw_dl_exchange *>PyCapsule_GetPointer(table, "dlpack_exchange_api")
            if self._table.version.major != 1:
                self._table = NULL

    @property
    def direct(self):
        """Whether tensors go from C to C, without a capsule."""
        return self._table != NULL

    def view(self, Arena arena not None, TensorHandle handle not None, owner=None):
        """The tensor that ``handle`` stands for: no copy, its dtype, shape and strides.

        The arena's mapping and ``owner`` live as long as the tensor, or any view of it, does; without
        an owner, its end needs no GIL. Memory outside this worker's lease is read-only: writing to
        the tensor ends the process.

        Raises:
            InvalidHandle: it is malformed, outside the data area, or not RAW.
        """
        return self.adopt(handle, arena.data_of(handle), arena.c, owner)

    def over(self, source, TensorHandle handle not None):
        """The tensor that ``handle`` describes in a contiguous buffer, which stays exported as long.

        The handle counts from the buffer's first byte, which may be aligned to its dtype only.
        Nobody may write to the tensor of a read-only buffer: torch doesn't know of such.

        Raises:
            InvalidHandle: it is malformed, reaches outside the buffer, or is not RAW; the buffer is
                not aligned to the dtype.
            BufferError: the source is not contiguous.
        """
        cdef object view = PyMemoryView_FromObject(source)
        cdef Py_buffer *buffer = PyMemoryView_GET_BUFFER(view)
        if not PyBuffer_IsContiguous(buffer, b"C"):
            raise BufferError("the buffer is not contiguous")
        handle.require(0, buffer.len)
        handle.require_raw()
        cdef size_t align = min(vw_itemsize(handle.c.dtype), 8)  # a complex128 is two numbers of 8 bytes
        if <size_t>buffer.buf % align:
            raise InvalidHandle(f"the buffer is not aligned to the {align} bytes that its dtype takes")
        return self.adopt(handle, <char *>buffer.buf + handle.c.offset, NULL, view)

    def locate(self, Arena arena not None, tensor):
        """The handle of a tensor that lies in the arena's data, as it lies there; None: no handle can say so.

        ``tensor`` must be of the framework's own type, and its memory mean what it holds. For ``direct``
        importers only.

        Raises:
            Whatever the framework says of a tensor that has no plain memory.
        """
        cdef vw_dl_tensor seen
        cdef TensorHandle handle = TensorHandle.__new__(TensorHandle, 0, 0, 0)
        cdef const void *address = NULL
        if self._table == NULL:
            raise TypeError("this framework has no exchange table")
        self._table.look_at(<void *>tensor, &seen)
        if not vw_dl_describe(&seen, &handle.c, &address):
            return None
        cdef uint64_t offset = vw_arena_locate(arena.c, address, handle.c.nbytes)
        if offset == UINT64_MAX or offset < arena.c.data_offset or offset % VW_HANDLE_ALIGN:
            return None
        handle.c.offset = offset
        return handle

    cdef object adopt(self, TensorHandle handle, char *data, vw_arena *arena, owner):
        if self._table == NULL:
            return self._adopt(encapsulate(handle, data, arena, owner))
        cdef vw_dl_versioned *managed = vw_dl_new_versioned(&handle.c, data, _delete_versioned)
        if managed == NULL:
            raise MemoryError()
        _keep(&managed.keep, arena, owner)
        cdef PyObject *made = NULL
        # A refusal would leave open whose the tensor is, so it is leaked rather than freed twice.
        # There are none: what a framework could refuse, the handle's check has refused before.
        self._table.to_object(managed, <void **>&made)
        tensor = <object>made
        Py_XDECREF(made)  # the reference that we were given: `tensor` is one more
        return tensor


def capsule(Arena arena not None, TensorHandle handle not None, owner=None):
    """What ``Importer.view`` gives, as a DLPack capsule for whoever reads those.

    One that is dropped unread lets go of the arena and the owner, too.

    Raises:
        InvalidHandle: as ``Importer.view``.
    """
    return encapsulate(handle, arena.data_of(handle), arena.c, owner)


cdef object encapsulate(TensorHandle handle, char *data, vw_arena *arena, owner):
    cdef vw_dl_managed *managed = vw_dl_new(&handle.c, data, _delete)
    if managed == NULL:
        raise MemoryError()
    _keep(&managed.keep, arena, owner)
    try:
        return PyCapsule_New(managed, "dltensor", _abandon)
    except BaseException:
        _delete(managed)
        raise


cdef void _keep(vw_dl_keep *keep, vw_arena *arena, owner) noexcept:
    keep.arena = arena
    keep.owner = <void *>owner if owner is not None else NULL
    Py_XINCREF(<PyObject *>keep.owner)
    if arena != NULL:
        vw_arena_hold(arena)


# The deleters: called by whoever adopted the tensor, in any thread, with or without the GIL.
cdef void _delete(vw_dl_managed *managed) noexcept nogil:
    _let_go(&managed.keep)
    free(managed)


cdef void _delete_versioned(vw_dl_versioned *managed) noexcept nogil:
    _let_go(&managed.keep)
    free(managed)


cdef void _let_go(vw_dl_keep *keep) noexcept nogil:
    # Once Python has ended, a tensor in some static variable keeps its owner: both go with the process.
    if keep.owner != NULL and Py_IsInitialized():
        _release(<PyObject *>keep.owner)
    if keep.arena != NULL:
        vw_arena_drop(<vw_arena *>keep.arena)


# A function of its own, so that the GIL is taken once, and only where there is an owner.
cdef void _release(PyObject *owner) noexcept with gil:
    Py_XDECREF(owner)


# The end of a capsule that nobody adopted: an adopted one has another name by then.
cdef void _abandon(object capsule) noexcept:
    if PyCapsule_IsValid(capsule, "dltensor"):
        _delete(<vw_dl_managed *>PyCapsule_GetPointer(capsule, "dltensor"))
