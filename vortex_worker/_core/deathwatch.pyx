"""Waiting for the slots' ``alive`` words to change: the kernel's early sign of a death. See csrc/deathwatch.h."""

from libc.errno cimport EINTR
from libc.stdint cimport uint32_t

from vortex_worker._core._check cimport check
from vortex_worker._core.arena cimport vw_slot
from vortex_worker._core.slots cimport Slot


cdef extern from "deathwatch.h" nogil:
    """
    static inline _Atomic uint32_t *vw_alive_word(vw_slot *slot) { return &slot->alive; }
    """
    enum:
        VW_WATCH_MOST

    ctypedef struct vw_deathwatch:
        uint32_t bell
    ctypedef struct vw_word "_Atomic uint32_t":
        pass

    vw_word *vw_alive_word(vw_slot *slot)
    uint32_t atomic_load(vw_word *word)
    int vw_deathwatch_supported()
    int vw_deathwatch_wait(
        vw_deathwatch *watch, uint32_t rung, vw_word **words, const uint32_t *expected, unsigned count
    )
    void vw_deathwatch_ring(vw_deathwatch *watch)


MOST = VW_WATCH_MOST  # slots that one can watch


def supported():
    """Whether this kernel can (Linux 5.16)."""
    return vw_deathwatch_supported() == 0


def word(Slot slot not None):
    """The slot's ``alive`` word, now: 0 while there is nothing to watch."""
    return atomic_load(vw_alive_word(slot.at()))


cdef class Bell:
    """One waiting thread's bell: ``ring`` makes it look again."""

    cdef vw_deathwatch c

    def ring(self):
        """Any thread. Never waits."""
        vw_deathwatch_ring(&self.c)

    @property
    def rung(self):
        """How often it has: to be read before what is to be watched is."""
        return atomic_load(<vw_word *>&self.c.bell)

    def wait(self, uint32_t rung, list watched not None):
        """Wait, without the GIL, until a word changes or the bell has rung since ``rung``.

        Args:
            watched: pairs of a Slot, whose arena stays open, and what its word is expected to be. At most ``MOST``.

        Returns:
            the slots whose words are something else now.
        """
        cdef vw_word *words[VW_WATCH_MOST]
        cdef uint32_t expected[VW_WATCH_MOST]
        cdef unsigned count = 0
        cdef int rc
        cdef Slot slot
        if len(watched) > VW_WATCH_MOST:
            raise ValueError(f"{len(watched)} slots to watch: it can be {VW_WATCH_MOST} at most")
        for slot, value in watched:
            words[count] = vw_alive_word(slot.at())
            expected[count] = value
            count += 1
        with nogil:
            rc = vw_deathwatch_wait(&self.c, rung, words, expected, count)
        if rc != -EINTR:
            check(rc)
        return [slot for slot, value in watched if word(slot) != value]
