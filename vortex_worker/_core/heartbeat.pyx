"""The heartbeat: a C thread that never takes the GIL."""

cimport cython
from libc.errno cimport EALREADY, EINVAL
from libc.stdint cimport uint32_t

from vortex_worker._core._check cimport check
from vortex_worker._core.slots cimport Slot


@cython.no_gc_clear  # the thread writes to the slot's memory: __dealloc__ must still find it there
cdef class Heartbeat:
    """Stores the time in ``slot`` every ``interval_ms``, whatever Python does meanwhile.

    When the peer of ``fd`` (the control socket; -1: none) hangs up, the process exits at once with
    status 0, also in the middle of a node. ``fd`` must stay open until ``stop``: the thread takes a
    closed one for a hang-up.
    """

    def __cinit__(self, Slot slot not None, int fd, uint32_t interval_ms):
        self.slot = slot
        self.fd = fd
        self.interval_ms = interval_ms

    def __dealloc__(self):
        self.stop()

    def start(self):
        """Beat now, and begin. Before lockdown: a filter may not let threads be made.

        Raises:
            RuntimeError: it runs already.
            ValueError: the interval is not 1 ms to an hour.
        """
        cdef int rc = vw_heartbeat_start(&self.c, self.slot.at(), self.fd, self.interval_ms)
        if rc == -EALREADY:
            raise RuntimeError("the heartbeat runs already")
        if rc == -EINVAL:
            raise ValueError(f"the interval is {self.interval_ms} ms: it must be 1 to 3600000")
        check(rc)
        self.slot.arena._views += 1

    def stop(self):
        """End the thread and wait for that, microseconds. Idempotent."""
        if self.c.running:
            vw_heartbeat_stop(&self.c)  # with the GIL, which the thread never wants
            self.slot.arena._views -= 1

    @property
    def running(self):
        return bool(self.c.running)
