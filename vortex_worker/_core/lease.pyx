"""Allocator of one region of the arena: private bookkeeping, shared memory untouched."""

from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.errno cimport ENOMEM, ENOSPC
from libc.stdint cimport uint64_t

from vortex_worker._core._check cimport check

from vortex_worker.errors import InvalidHandle, OutOfArena


cdef extern from "lease.h" nogil:
    ctypedef struct vw_lease:
        uint64_t offset
        uint64_t size
        uint64_t used
        uint64_t live

    int vw_lease_init(vw_lease *lease, uint64_t offset, uint64_t size)
    void vw_lease_destroy(vw_lease *lease)
    int vw_lease_allocate(vw_lease *lease, uint64_t nbytes, uint64_t *offset)
    int vw_lease_free(vw_lease *lease, uint64_t offset, uint64_t *size)
    int vw_lease_size(const vw_lease *lease, uint64_t offset, uint64_t *size)
    uint64_t vw_lease_largest_free(const vw_lease *lease)


cdef class LeaseAllocator:
    """``LeaseAllocator(offset, size)``: hands out blocks of ``[offset, offset + size)``, 64-byte aligned.

    Constant time. Safe from several threads: no method gives up the GIL half-way.
    """

    cdef vw_lease *_lease

    def __cinit__(self, uint64_t offset, uint64_t size):
        self._lease = <vw_lease *>PyMem_Malloc(sizeof(vw_lease))
        if self._lease == NULL:
            raise MemoryError()
        cdef int rc = vw_lease_init(self._lease, offset, size)
        if rc:
            PyMem_Free(self._lease)
            self._lease = NULL
            check(rc)

    def __dealloc__(self):
        if self._lease != NULL:
            vw_lease_destroy(self._lease)
            PyMem_Free(self._lease)

    def allocate(self, uint64_t nbytes):
        """Arena offset of a new block of ``nbytes``; 0 bytes take a block, too.

        Raises:
            OutOfArena: no free block is large enough.
        """
        cdef uint64_t offset = 0
        cdef int rc = vw_lease_allocate(self._lease, nbytes, &offset)
        if rc == -ENOSPC:
            raise OutOfArena(
                f"{nbytes} bytes are wanted; of {self.size} bytes, {self.size - self.used} are free, "
                f"{self.largest_free} in one piece",
                {"wanted": str(nbytes), "free": str(self.size - self.used)},
            )
        if rc == -ENOMEM:
            raise MemoryError("no memory for the allocator's tables")
        check(rc)
        return offset

    def free(self, uint64_t offset):
        """Free the block at ``offset``; returns its size.

        Raises:
            InvalidHandle: no live block begins there.
        """
        cdef uint64_t size = 0
        if vw_lease_free(self._lease, offset, &size):
            raise InvalidHandle(f"no live block begins at offset {offset}")
        return size

    def size_of(self, uint64_t offset):
        """Size of the live block at ``offset``, or InvalidHandle."""
        cdef uint64_t size = 0
        if vw_lease_size(self._lease, offset, &size):
            raise InvalidHandle(f"no live block begins at offset {offset}")
        return size

    @property
    def offset(self):
        return self._lease.offset

    @property
    def size(self):
        return self._lease.size

    @property
    def used(self):
        """Bytes in live blocks."""
        return self._lease.used

    @property
    def live(self):
        """Count of live blocks."""
        return self._lease.live

    @property
    def largest_free(self):
        """Bytes of the largest free block."""
        return vw_lease_largest_free(self._lease)
