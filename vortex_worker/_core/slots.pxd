from libc.stdint cimport int32_t, uint32_t, uint64_t

from vortex_worker._core.arena cimport Arena, vw_slot


cdef extern from "slot.h" nogil:
    enum:
        VW_FREE
        VW_IDLE
        VW_BUSY
        VW_STARTING
        VW_DRAINING
        VW_DEAD

    ctypedef struct vw_slot_copy:
        int32_t pid
        uint32_t status
        uint64_t job_id
        uint64_t heartbeat
        uint64_t activity
        uint32_t step
        uint32_t total
        uint64_t fault_address
        uint32_t fault_signal
        uint64_t fault_time

    void vw_slot_register(vw_slot *slot, int32_t pid)
    void vw_slot_begin(vw_slot *slot, uint64_t job_id)
    void vw_slot_end(vw_slot *slot)
    void vw_slot_progress(vw_slot *slot, uint32_t step, uint32_t total)
    void vw_slot_clear(vw_slot *slot)
    void vw_slot_set_status(vw_slot *slot, uint32_t status)
    void vw_slot_snapshot(const vw_slot *slot, vw_slot_copy *copy)


cdef class Slot:
    cdef readonly Arena arena           # keeps the memory mapped
    cdef readonly unsigned int index

    cdef vw_slot *at(self) except NULL  # ValueError when the arena is closed
    cdef vw_slot_copy copy(self) except *
