"""System calls made to see what the filters say of them; see csrc/probe.h. For ``vortex-worker doctor``."""

from libc.stdint cimport int64_t, uint32_t, uint64_t, uintptr_t


cdef extern from "<pthread.h>" nogil:
    unsigned long pthread_self()


cdef extern from "probe.h" nogil:
    enum:
        VW_PROBE_NATIVE
        VW_PROBE_INT_80

    ctypedef struct vw_probe_call:
        int64_t number
        uint64_t args[6]
        int64_t result
        uint32_t way
        uint32_t state

    ctypedef struct vw_probe_work:
        vw_probe_call *calls
        size_t count
        unsigned long caller

    int vw_probe_supported()
    void vw_probe_addresses(uint64_t *native, uint64_t *int_80)
    void vw_probe_run(void *work)


NATIVE = VW_PROBE_NATIVE
INT_80 = VW_PROBE_INT_80
CALL_SIZE = sizeof(vw_probe_call)  # i64 number, u64 args[6], i64 result, u32 way, u32 state


def supported():
    """Whether this machine's calls can be tried: x86-64 Linux."""
    return vw_probe_supported() == 0


def addresses():
    """``(native, int 0x80)``: what a filter sees as the instruction pointer of the calls made here."""
    cdef uint64_t native, int_80
    vw_probe_addresses(&native, &int_80)
    return native, int_80


cdef class Work:
    """Calls to be made: a writable buffer of ``CALL_SIZE`` bytes each, shared with whoever looks at the results."""

    cdef vw_probe_work c
    cdef object owner

    def __cinit__(self, unsigned char[::1] calls not None):
        if calls.shape[0] == 0 or calls.shape[0] % sizeof(vw_probe_call):
            raise ValueError(f"{calls.shape[0]} bytes of calls: they must be a multiple of {sizeof(vw_probe_call)}")
        self.owner = calls
        self.c.calls = <vw_probe_call *>&calls[0]
        self.c.count = calls.shape[0] // sizeof(vw_probe_call)

    def run(self):
        """Make them, in this thread."""
        self.c.caller = 0
        with nogil:
            vw_probe_run(&self.c)

    def elsewhere(self):
        """``(function, argument)``, two addresses, for a function that calls it in several threads, of which this
        one makes no call."""
        self.c.caller = pthread_self()
        return <uintptr_t>&vw_probe_run, <uintptr_t>&self.c
