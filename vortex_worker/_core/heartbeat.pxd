from libc.stdint cimport uint32_t

from vortex_worker._core.arena cimport vw_slot
from vortex_worker._core.slots cimport Slot


cdef extern from "heartbeat.h" nogil:
    ctypedef struct vw_heartbeat:
        bint running

    int vw_heartbeat_start(vw_heartbeat *heartbeat, vw_slot *slot, int fd, uint32_t interval_ms)
    void vw_heartbeat_stop(vw_heartbeat *heartbeat)


cdef class Heartbeat:
    cdef vw_heartbeat c
    cdef readonly Slot slot             # counted as a view of its arena while the thread runs
    cdef readonly int fd
    cdef readonly unsigned int interval_ms
