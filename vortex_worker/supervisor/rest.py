"""Whether a worker that has nothing to do does nothing: a thread that a node left behind may run on for ever."""

from __future__ import annotations

import contextlib
import os
import time

_LONG_ENOUGH = 0.4  # s that a look takes, to mean anything
_TICKS = os.sysconf("SC_CLK_TCK")  # per second: the unit of /proc/<pid>/stat


class Rest:
    """What the threads of one process want of the CPUs from now on, by the kernel's word."""

    def __init__(self, pid: int, jobs: int) -> None:
        """``jobs``: how many it has done; after another one, this rest is over."""
        self.jobs = jobs
        self._pid = pid
        self._begun = time.monotonic()
        self._used, self._waited = self._measure()

    def unrest(self) -> float | None:
        """How many CPUs it kept busy since, or would have if it had got them. None: too early to say, or it is gone."""
        passed = time.monotonic() - self._begun
        if passed < _LONG_ENOUGH:
            return None
        try:
            used, waited = self._measure()
        except OSError:
            return None
        # On a busy machine a thread that would run for ever mostly waits. Of threads that have ended, only what they
        # used is known.
        wanted = sum(now - self._waited[thread] for thread, now in waited.items() if thread in self._waited)
        return (used - self._used + wanted) / passed

    def _measure(self) -> tuple[float, dict[str, float]]:
        """Seconds of CPU that the process has used (proc(5), stat), and that each thread waited for (schedstat).

        Raises:
            OSError: it is gone.
        """
        with open(f"/proc/{self._pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        waited = {}
        for thread in os.listdir(f"/proc/{self._pid}/task"):
            with contextlib.suppress(OSError), open(f"/proc/{self._pid}/task/{thread}/schedstat") as file:
                waited[thread] = int(file.read().split()[1]) / 1e9
        return (int(fields[11]) + int(fields[12])) / _TICKS, waited
