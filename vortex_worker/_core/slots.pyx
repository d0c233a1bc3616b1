"""Slots: one worker's state in shared memory, every field accessed atomically."""

from libc.stdint cimport int32_t, uint32_t, uint64_t

from vortex_worker._core.arena cimport VW_SLOT_COUNT, Arena, vw_slot, vw_slot_at

from collections import namedtuple


cdef extern from "clock.h" nogil:
    uint64_t vw_monotonic_ns()


FREE = VW_FREE
IDLE = VW_IDLE
BUSY = VW_BUSY
STARTING = VW_STARTING
DRAINING = VW_DRAINING
DEAD = VW_DEAD

SLOT_COUNT = VW_SLOT_COUNT

# pid status job_id: as registered. heartbeat, fault_time: CLOCK_MONOTONIC ns. activity: counts job
# starts and progress reports. fault_address: arena offset + 1 of the access that killed; 0: none.
SlotSnapshot = namedtuple(
    "SlotSnapshot",
    "pid status job_id heartbeat activity step total fault_address fault_signal fault_time",
    module=__name__,
)


def monotonic_ns():
    """The clock of heartbeats: CLOCK_MONOTONIC in ns."""
    return vw_monotonic_ns()


cdef class Slot:
    """Slot ``index`` of an arena.

    A worker registers and reports; the supervisor takes snapshots and clears. Whatever is read here
    may have been written by a hostile worker.

    Raises:
        IndexError: there is no such slot.
        ValueError: the arena is closed (at any use).
    """

    def __cinit__(self, Arena arena not None, index):
        if not 0 <= index < VW_SLOT_COUNT:
            raise IndexError(f"slot {index}: there are {VW_SLOT_COUNT}")
        self.arena = arena
        self.index = index
        self.at()

    cdef vw_slot *at(self) except NULL:
        self.arena.require_open()
        return vw_slot_at(self.arena.c.head, self.index)

    cdef vw_slot_copy copy(self) except *:
        cdef vw_slot_copy copy
        vw_slot_snapshot(self.at(), &copy)
        return copy

    def register(self, int32_t pid):
        """Worker: wipe what a predecessor left, and be STARTING."""
        vw_slot_register(self.at(), pid)

    def begin(self, uint64_t job_id):
        """Worker: a job begins; BUSY."""
        vw_slot_begin(self.at(), job_id)

    def end(self):
        """Worker: the job has ended; IDLE."""
        vw_slot_end(self.at())

    def progress(self, uint32_t step, uint32_t total):
        """Worker's main thread: at ``step`` of ``total``. Counts as activity."""
        vw_slot_progress(self.at(), step, total)

    def clear(self):
        """Supervisor: FREE, everything else 0."""
        vw_slot_clear(self.at())

    def set_status(self, uint32_t status):
        if status > VW_DEAD:
            raise ValueError(f"status {status}: it must be FREE (0) to DEAD ({VW_DEAD})")
        vw_slot_set_status(self.at(), status)

    def snapshot(self):
        """Each field, loaded once. Whoever sees a status sees what was written before it."""
        cdef vw_slot_copy c = self.copy()
        return SlotSnapshot(
            c.pid, c.status, c.job_id, c.heartbeat, c.activity, c.step, c.total,
            c.fault_address, c.fault_signal, c.fault_time,
        )

    @property
    def status(self):
        return self.copy().status

    @property
    def pid(self):
        return self.copy().pid

    @property
    def job_id(self):
        return self.copy().job_id

    @property
    def heartbeat(self):
        return self.copy().heartbeat

    @property
    def activity(self):
        return self.copy().activity

    @property
    def step(self):
        return self.copy().step

    @property
    def total(self):
        return self.copy().total

    def __repr__(self):
        return f"Slot({self.index})" if self.arena.closed else f"Slot({self.index}, {self.snapshot()})"
