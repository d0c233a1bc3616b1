"""What is looked at from time to time: heartbeats, progress, memory, rest, waiting releases. In the fabric's thread."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vortex_worker._core.slots import monotonic_ns
from vortex_worker.supervisor.link import Stage
from vortex_worker.supervisor.rest import Rest

if TYPE_CHECKING:
    from vortex_worker.supervisor.crew import Crew
    from vortex_worker.supervisor.link import WorkerLink

log = logging.getLogger("vortex_worker")

TICK = 0.5  # s between two looks
_UNREST = 0.5  # CPUs that a worker without a job may want; its heartbeat wants a thousandth


@dataclass(frozen=True, slots=True)
class Limits:
    """What a worker may do until it is replaced."""

    heartbeat_timeout: float  # s without a sign of life
    stall_timeout: float  # s in which a running node must report progress; 0: any
    memory_growth: int  # bytes since it became ready; 0: any

    @property
    def pause(self) -> float:
        """Seconds between two looks, so that none is seen much too late."""
        return min(TICK, self.heartbeat_timeout / 2, (self.stall_timeout or TICK) / 2)


class Vigil:
    """Looks at every worker of ``crew`` that is ready, as long as it is open."""

    def __init__(self, crew: Crew, limits: Limits) -> None:
        self._crew = crew
        self._limits = limits

    def look(self) -> None:
        """Look once, and again after a pause."""
        for link in self._crew.links():
            if link.stage is not Stage.READY:
                continue
            self._check_heartbeat(link)
            self._check_rest(link)
            if self._limits.stall_timeout:
                self._check_activity(link)
            if self._limits.memory_growth:
                self._check_memory(link)
            self._crew.inbox.read(link)
            if link.idle:
                self._crew.release(link)
        self._crew.memory.tidy()
        if not self._crew.closing:
            self._crew.loop.call_later(self._limits.pause, self.look)

    def _check_heartbeat(self, link: WorkerLink) -> None:
        beat, timeout = link.slot.heartbeat, self._limits.heartbeat_timeout
        late = beat and monotonic_ns() - beat > timeout * 1e9
        if late and link.process.stopped():  # the kernel's word too: another worker can write this one's slot
            self._crew.endings.give_up(link, f"it was stopped: no heartbeat for {timeout} s")

    def _check_rest(self, link: WorkerLink) -> None:
        """A job's deadline ends with the job, and so must all that it has started."""
        if not link.free or not link.jobs_done:
            link.rest = None
        elif link.rest is None or link.rest.jobs != link.jobs_done:
            with contextlib.suppress(OSError):  # it has just ended
                link.rest = Rest(link.process.pid, link.jobs_done)
        elif (unrest := link.rest.unrest()) is not None:
            with self._crew.lock:
                if unrest > _UNREST and link.free:  # still, and it gets no job from now on
                    self._crew.endings.give_up(
                        link, f"it has no job, and computes: something that a node left behind ({unrest:.1f} CPUs)"
                    )
            link.rest = None

    def _check_activity(self, link: WorkerLink) -> None:
        count, now, timeout = link.slot.activity, monotonic_ns(), self._limits.stall_timeout
        if link.task is None or count != link.activity[0]:
            link.activity = (count, now)
        elif now - link.activity[1] > timeout * 1e9:
            self._crew.endings.give_up(link, f"it is alive, but its node made no progress for {timeout} s")

    def _check_memory(self, link: WorkerLink) -> None:
        grown = link.process.memory() - link.memory
        if grown > self._limits.memory_growth and not link.retiring:
            log.warning("worker %s has grown by %d MiB: it is replaced", link.worker_id, grown >> 20)
            self._crew.endings.retire(link)
