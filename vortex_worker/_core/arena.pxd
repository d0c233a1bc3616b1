from libc.stdint cimport uint32_t, uint64_t

from vortex_worker._core.handle cimport TensorHandle


cdef extern from "<stdbool.h>" nogil:
    ctypedef bint c_bool "bool"     # what C's bool * takes; bint is an int


cdef extern from "layout.h" nogil:
    ctypedef struct vw_slot:
        pass

    vw_slot *vw_slot_at(void *arena, uint32_t index)
    enum: VW_SLOT_COUNT
    const uint64_t VW_DATA_ALIGN


cdef extern from "arena.h" nogil:
    ctypedef struct vw_arena:
        uint64_t holders            # this object, and each tensor over the mappings
        char *base
        uint64_t size
        char *head                  # header and slots, read-write in every process
        char *lease
        uint64_t lease_offset
        uint64_t lease_size
        uint64_t data_offset
        uint64_t data_size
        int fd
        int readonly_fd
        bint writable


cdef class Arena:
    cdef vw_arena *c
    cdef Py_ssize_t _views          # what else needs the mappings: buffers, heartbeat, fault handler

    cdef char *data_of(self, TensorHandle handle) except NULL
    cdef char *at(self, uint64_t offset, uint64_t nbytes, c_bool *writable) except NULL
    cdef int require_open(self) except -1
