"""Launches workers: a lease and a process for each, again after a pause where that fails. In the fabric's thread."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from vortex_worker._core.slots import monotonic_ns
from vortex_worker.errors import LaunchError, OutOfArena, SettingRefused
from vortex_worker.supervisor.link import WorkerLink
from vortex_worker.supervisor.nursery import Nursery
from vortex_worker.supervisor.process import WorkerProcess
from vortex_worker.supervisor.recovery import Backoff

if TYPE_CHECKING:
    from vortex_worker.config import WorkerConfig
    from vortex_worker.supervisor.crew import Crew
    from vortex_worker.supervisor.memory import Lease, Memory

log = logging.getLogger("vortex_worker")

_STARVATION = 5.0  # s without any worker, for want of a lease, after which queued jobs are told
_PAUSE = 0.5  # s until a lease is asked for again
_NO_USE = (2, 4)  # a worker's exit status when its settings are wrong, or the machine lacks a layer of the sandbox


class Launcher:
    """Starts workers for ``crew``, which gets each by ``adopt``."""

    def __init__(self, crew: Crew, config: WorkerConfig, memory: Memory, *, zygote: bool) -> None:
        self._crew = crew
        self._config = config
        self._memory = memory
        self._launched = 0
        self._starts = Backoff()
        self._proven = False  # that a worker can start as we are configured
        self._postponed: Iterable[int] = ()  # slots whose workers can wait until another is ready
        self._starving = 0  # since when no lease can be had, ns; 0: they can
        #: What forks them; None: each is started by itself.
        self.nursery = Nursery(self, crew, config) if zygote else None

    def launch(self, index: int) -> None:
        """Start a worker for a slot, if it is still wanted."""
        with self._crew.lock:
            if not self._crew.wants(index):
                return
            self._launched += 1
            config = replace(self._config, worker_id=f"w{index}.{self._launched}")
            try:
                lease = self._memory.hold_lease()
            except OutOfArena as error:
                log.warning("worker %d waits: %s", index, error.message)
                self._starve(error)
                self._crew.loop.call_later(_PAUSE, self.launch, index)
                return
            self._starving = 0
            self._memory.restore()
            if self.nursery is not None:
                self.nursery.order(index, config, lease, self._memory.arena.fd)
                return
            try:
                process = WorkerProcess.execute(config, self._memory.arena.fd)
            except LaunchError as error:
                self.not_born(index, lease, str(error))
                return
            self.born(index, config, process, lease)

    def _starve(self, error: OutOfArena) -> None:
        """No worker can be had for want of a lease. Who waits for a job may be who keeps them: tell them."""
        now = monotonic_ns()
        self._starving = self._starving or now
        if not self._crew.links() and now - self._starving > _STARVATION * 1e9:
            self._crew.jobs.fail_queued(OutOfArena, error.message)

    def not_born(self, index: int, lease: Lease, why: str, *, passing: bool = False) -> None:
        """No process could be had for a worker; ``passing``: for want of what others may give back."""
        with self._crew.lock:
            self._memory.give_back(lease)
            if not self._crew.over:
                self.failed(index, LaunchError(why), None, passing=passing)

    def born(self, index: int, config: WorkerConfig, process: WorkerProcess, lease: Lease) -> None:
        """There is a process."""
        self._crew.adopt(WorkerLink(index, config, process, self._memory.arena, lease))

    def locked_down(self) -> None:
        """A worker went through all of its life up to its first job: our settings are right."""
        self._proven = True

    def postpone(self, slots: Iterable[int]) -> None:
        """Launch workers for these when one is ready that jobs wait for: until then they would only slow it down."""
        self._postponed = slots

    def succeeded(self) -> None:
        """A worker is ready."""
        self._starts.succeeded()
        for index in self._postponed:
            self._crew.loop.call_soon(self.launch, index)
        self._postponed = ()

    def failed(self, index: int, why: LaunchError, status: int | None, *, passing: bool = False) -> None:
        """A worker ended before it was ready: try again, more slowly each time, and then say so."""
        self._starts.failed(status, passing=passing)
        level = logging.WARNING if isinstance(why, SettingRefused) and self._proven else logging.INFO
        log.log(level, "a worker did not start: %s", str(why).splitlines()[0])
        if (status in _NO_USE and not self._proven) or (self._starts.hopeless and not self._crew.any_ready()):
            self._crew.broken(why)
        else:
            self._crew.loop.call_later(self._starts.pause, self.launch, index)
