"""The arena's mapping, and buffers over it."""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer
from libc.errno cimport EINVAL
from libc.stdint cimport INT64_MAX, UINT64_MAX, uint64_t
from libc.string cimport memcpy

from vortex_worker._core._check cimport check
from vortex_worker._core.handle cimport TensorHandle

import os

from vortex_worker.errors import ConfigError, InvalidHandle


cdef extern from "arena.h" nogil:
    enum vw_refusal:
        VW_ACCEPTED
        VW_BAD_FILE
        VW_OTHER_FILE
        VW_NOT_READONLY
        VW_TOO_SMALL
        VW_BAD_MAGIC
        VW_BAD_VERSION
        VW_BAD_DATA
        VW_REFUSED_MAP

    vw_arena *vw_arena_new()
    void vw_arena_hold(vw_arena *arena)
    void vw_arena_drop(vw_arena *arena)
    int vw_arena_create(vw_arena *arena, uint64_t size, const char *name)
    void vw_arena_write_header(vw_arena *arena)
    int vw_arena_attach(
        vw_arena *arena, int fd, int readonly_fd, uint64_t size, uint64_t data_offset, vw_refusal *refusal
    )
    int vw_arena_lease(vw_arena *arena, uint64_t offset, uint64_t size)
    void vw_arena_close_descriptors(vw_arena *arena)
    void vw_arena_close(vw_arena *arena)
    char *vw_arena_at(const vw_arena *arena, uint64_t offset, uint64_t nbytes, c_bool *writable)
    uint64_t vw_arena_locate(const vw_arena *arena, const void *address, uint64_t nbytes)
    int vw_arena_prefault(const vw_arena *arena, uint64_t offset, uint64_t nbytes)
    int vw_arena_discard(const vw_arena *arena, uint64_t offset, uint64_t nbytes)


# Copies above this many bytes let other threads run meanwhile; below, giving up the GIL costs more.
cdef enum:
    COPY_NOGIL = 1 << 20

_REFUSALS = {
    VW_BAD_FILE: "is not shared memory",
    VW_OTHER_FILE: "is another file behind the read-only descriptor than behind the read-write one",
    VW_NOT_READONLY: "has a second descriptor that is not read-only, so that inputs could be written to",
    VW_TOO_SMALL: "is smaller than VORTEX_SHM_SIZE says, or than a header and 256 slots",
    VW_BAD_MAGIC: "does not begin with the magic number of an arena",
    VW_BAD_VERSION: "has a layout version other than 1",
    VW_BAD_DATA: "has a data area that does not lie in it, or not clear of the slots' pages",
    VW_REFUSED_MAP: "can't be mapped",
}


cdef class Arena:
    """Shared memory, mapped. Made by ``create`` (supervisor) or ``attach`` (worker).

    Views keep it mapped: ``close`` refuses while there are any, and an arena that is dropped
    without ``close`` is unmapped with its last view.
    """

    def __cinit__(self):
        self.c = vw_arena_new()
        if self.c == NULL:
            raise MemoryError()

    def __dealloc__(self):
        if self.c != NULL:
            vw_arena_drop(self.c)

    @staticmethod
    def create(uint64_t size, name=None):
        """Supervisor: a new arena of ``size`` bytes, a multiple of 2 MiB; pages come at first touch.

        Args:
            name: of a new POSIX shared memory object, which the caller unlinks; None for a memfd,
                sealed against shrinking, growing and further seals.

        Raises:
            ValueError: the size is no multiple of 2 MiB, or leaves no room for data.
            OSError: it can't be had (FileExistsError: the name is taken).
        """
        cdef Arena arena = Arena.__new__(Arena)
        cdef bytes encoded = os.fsencode(name) if name is not None else None
        cdef const char *c_name = NULL
        if encoded is not None:
            if b"\0" in encoded:
                raise ValueError(f"name is {name!r}: it takes no null bytes")
            c_name = encoded
        if size % VW_DATA_ALIGN or size <= VW_DATA_ALIGN or size > INT64_MAX:
            raise ValueError(
                f"size is {size}: it takes a multiple of {VW_DATA_ALIGN} bytes, at least {2 * VW_DATA_ALIGN}"
            )
        check(vw_arena_create(arena.c, size, c_name))
        return arena

    @staticmethod
    def attach(int fd, int readonly_fd, uint64_t size=0, uint64_t data_offset=0):
        """Worker: map an arena, all of it read-only, header and slots read-write too.

        Takes over both descriptors, the second of which must be read-only: the kernel then never
        makes its mapping writable. ``size`` 0: as large as the file is. ``data_offset``: where data
        begins, to the end; the header, which other workers can write, is then not read.

        Raises:
            ConfigError: it is no arena; the message says why.
        """
        cdef Arena arena = Arena.__new__(Arena)
        cdef vw_refusal refusal
        if vw_arena_attach(arena.c, fd, readonly_fd, size, data_offset, &refusal):
            raise ConfigError(f"the shared memory {_REFUSALS[refusal]}")
        return arena

    def lease(self, uint64_t offset, uint64_t size):
        """Worker: map its own region read-write. Once.

        Raises:
            ConfigError: not page-aligned, not inside the data area, or a second one.
        """
        self.require_open()
        cdef int rc = vw_arena_lease(self.c, offset, size)
        if rc == -EINVAL:
            raise ConfigError(
                f"the lease, {size} bytes at {offset}, must be made of whole pages inside the data area, "
                f"{self.c.data_size} bytes at {self.c.data_offset}, and be the only one"
            )
        check(rc)

    def restore_header(self):
        """Supervisor: write the header as it was made, whatever a hostile worker has written there since."""
        self.require_open()
        if not self.c.writable:
            raise ValueError("only the supervisor's arena has a header to restore")
        vw_arena_write_header(self.c)

    def seal_descriptors(self):
        """Close the descriptors: what is mapped now is all that ever will be."""
        vw_arena_close_descriptors(self.c)

    def close(self):
        """Unmap and close. Idempotent.

        Raises:
            BufferError: views are alive.
        """
        if self.views:
            raise BufferError(f"the arena has {self.views} live views: drop them first")
        vw_arena_close(self.c)

    @property
    def closed(self):
        return self.c.base == NULL

    @property
    def size(self):
        return self.c.size

    @property
    def data_offset(self):
        return self.c.data_offset

    @property
    def data_size(self):
        return self.c.data_size

    @property
    def lease_offset(self):
        return self.c.lease_offset

    @property
    def lease_size(self):
        """Bytes of the worker's own region; 0 before ``lease``."""
        return self.c.lease_size

    @property
    def fd(self):
        """The read-write descriptor, or -1."""
        return self.c.fd

    @property
    def views(self):
        """Count of live views: capsules, tensors, buffers, and what runs on the mappings by itself."""
        return self._views + <Py_ssize_t>self.c.holders - 1

    @property
    def address(self):
        """Where the whole mapping begins in this process."""
        return <uint64_t><size_t>self.c.base

    @property
    def lease_address(self):
        """Where the worker's own region is mapped read-write in this process; 0 before ``lease``."""
        return <uint64_t><size_t>self.c.lease

    cdef int require_open(self) except -1:
        if self.c.base == NULL:
            raise ValueError("the arena is closed")
        return 0

    cdef char *at(self, uint64_t offset, uint64_t nbytes, c_bool *writable) except NULL:
        self.require_open()
        cdef char *found = vw_arena_at(self.c, offset, nbytes, writable)
        if found == NULL:
            raise InvalidHandle(f"{nbytes} bytes at offset {offset} are outside the arena of {self.c.size} bytes")
        return found

    cdef char *data_of(self, TensorHandle handle) except NULL:
        # Where a tensor's bytes are in this process, once the handle has passed its check.
        cdef c_bool writable
        handle.require(self.c.data_offset, self.c.data_size)
        handle.require_raw()
        return self.at(handle.c.offset, handle.c.nbytes, &writable)

    def buffer(self, uint64_t offset, uint64_t nbytes, owner=None):
        """An object with the buffer protocol over ``nbytes`` at ``offset``; read-only where the memory is."""
        cdef c_bool writable
        cdef ArenaBuffer buffer = ArenaBuffer.__new__(ArenaBuffer)
        buffer.data = self.at(offset, nbytes, &writable)
        buffer.nbytes = <Py_ssize_t>nbytes
        buffer.readonly = not writable
        buffer.owner = owner
        buffer.arena = self
        self._views += 1
        return buffer

    def write(self, uint64_t offset, source):
        """Copy a contiguous buffer to ``offset``.

        Raises:
            InvalidHandle: that memory is outside the arena, or read-only here.
        """
        cdef Py_buffer view
        PyObject_GetBuffer(source, &view, PyBUF_SIMPLE)
        try:
            self.copy_from(offset, <uint64_t><size_t>view.buf, <uint64_t>view.len)
        finally:
            PyBuffer_Release(&view)

    def copy_from(self, uint64_t offset, uint64_t address, uint64_t nbytes):
        """Copy ``nbytes`` from this process's memory at ``address``, which the caller keeps alive.

        Raises:
            InvalidHandle: that memory is outside the arena, or read-only here.
        """
        cdef c_bool writable
        cdef char *target = self.at(offset, nbytes, &writable)
        if not writable:
            raise InvalidHandle(f"{nbytes} bytes at offset {offset} are not in this worker's lease: read-only")
        if nbytes > COPY_NOGIL:
            vw_arena_hold(self.c)  # nobody closes it meanwhile
            with nogil:
                memcpy(target, <const void *><size_t>address, nbytes)
            vw_arena_drop(self.c)
        else:
            memcpy(target, <const void *><size_t>address, nbytes)

    def locate(self, uint64_t address, uint64_t nbytes):
        """Arena offset of this process's memory at ``address``, or -1 if it isn't the arena's."""
        cdef uint64_t offset = vw_arena_locate(self.c, <const void *><size_t>address, nbytes)
        return -1 if offset == UINT64_MAX else offset

    def prefault(self, uint64_t offset, uint64_t nbytes):
        """Take the pages of this range now, huge ones where the kernel offers them."""
        self.require_open()
        cdef int rc
        vw_arena_hold(self.c)
        with nogil:
            rc = vw_arena_prefault(self.c, offset, nbytes)
        vw_arena_drop(self.c)
        check(rc)

    def discard(self, uint64_t offset, uint64_t nbytes):
        """Supervisor: give the pages of this range, whole pages of data, back to the system."""
        self.require_open()
        check(vw_arena_discard(self.c, offset, nbytes))


@cython.no_gc_clear  # the end must still see the arena
cdef class ArenaBuffer:
    """Bytes of the arena, through the buffer protocol."""

    cdef Arena arena
    cdef object owner
    cdef char *data
    cdef Py_ssize_t nbytes
    cdef bint readonly

    def __dealloc__(self):
        if self.arena is not None:
            self.arena._views -= 1

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, self.data, self.nbytes, self.readonly, flags)

    def __len__(self):
        return self.nbytes
