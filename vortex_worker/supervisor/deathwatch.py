"""Notices deaths before the kernel has buried the dead.

A pidfd and the end of a socket come only when a process's memory has been taken apart: 5 ms with 64 MiB, 40 with
512. The lock that a worker's heartbeat thread holds (csrc/heartbeat.h) is let go first, in a tenth of a
millisecond. But a worker can write that word as it likes, so it is a hint: what was the dead one's is freed when
the pidfd confirms.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from vortex_worker._core import deathwatch

if TYPE_CHECKING:
    from vortex_worker.supervisor.link import WorkerLink


log = logging.getLogger("vortex_worker")


class DeathWatch:
    """One thread that waits for any of a fabric's workers to die.

    Where the kernel can't (before Linux 5.16), and for workers beyond the 127th, there is only the pidfd.
    """

    def __init__(self, dead: Callable[[WorkerLink], object]) -> None:
        """``dead`` is called in the watch's own thread, once for a worker; it may take its time."""
        self._dead = dead
        self._acting = threading.Lock()  # while it does
        self._lock = threading.Lock()
        self._watched: dict[WorkerLink, int] = {}  # and what its word should be
        self._closing = False
        self._bell = deathwatch.Bell()
        self._thread: threading.Thread | None = None  # from the first worker on

    def add(self, link: WorkerLink) -> None:
        """Watch a worker that is ready."""
        word = deathwatch.word(link.slot)
        with self._lock:
            if self._closing or not word or len(self._watched) >= deathwatch.MOST or not deathwatch.supported():
                return
            self._watched[link] = word
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="vortex-deathwatch", daemon=True)
                self._thread.start()
        self._bell.ring()

    def remove(self, link: WorkerLink) -> None:
        """Before its slot is used for another. ``dead`` is not being called for it afterwards."""
        with self._lock:
            watched = self._watched.pop(link, None) is not None
        if watched:
            self._bell.ring()
        else:
            with self._acting:
                pass

    def close(self) -> None:
        """End the thread. To be called before the arena closes."""
        with self._lock:
            self._closing = True
        self._bell.ring()
        if self._thread is not None:
            self._thread.join()

    def _watch(self) -> None:
        while True:
            rung = self._bell.rung
            with self._lock:
                if self._closing:
                    return
                by_slot = {link.slot: link for link in self._watched}
                watched = [(link.slot, word) for link, word in self._watched.items()]
            changed = self._bell.wait(rung, watched)
            with self._acting:
                with self._lock:
                    gone = [by_slot[slot] for slot in changed if self._watched.pop(by_slot[slot], None) is not None]
                for link in gone:
                    # 0: the lock was given back, as at an orderly end. If that is no such end, the pidfd will tell.
                    if deathwatch.word(link.slot):
                        self._tell(link)

    def _tell(self, link: WorkerLink) -> None:
        try:
            self._dead(link)
        except Exception:  # a bug; but the others are to be watched all the same, and the pidfd tells of this one
            log.exception("the death of worker %s was not dealt with at its first sign", link.worker_id)
