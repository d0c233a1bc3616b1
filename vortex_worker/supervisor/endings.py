"""How workers end: they are replaced, given up, found dead, or the fabric is closed; and what follows from it.

Whatever the reason, a worker is gone when its pidfd says so (``on_exit``): only then is what it could write to
given to others.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from vortex_worker.errors import FabricClosed
from vortex_worker.ipc import control_pb2 as pb
from vortex_worker.supervisor.deathwatch import DeathWatch
from vortex_worker.supervisor.link import Stage
from vortex_worker.supervisor.process import describe_exit
from vortex_worker.supervisor.recovery import explain_start

if TYPE_CHECKING:
    from vortex_worker.supervisor.crew import Crew
    from vortex_worker.supervisor.link import WorkerLink

log = logging.getLogger("vortex_worker")

_LOOK, _LOOKS = 0.0002, 20  # s between looks at whether a worker is really dying, and how often


class Endings:
    """Ends the workers of ``crew``; does what follows where they end by themselves. In its thread, or as told."""

    def __init__(self, crew: Crew, grace: float) -> None:
        """``grace``: seconds that a worker which is let go has to end by itself."""
        self._crew = crew
        self._grace = grace
        self._deathwatch = DeathWatch(self.on_sign_of_death)

    # ------------------------------------------------------------ on purpose

    def retire(self, link: WorkerLink) -> None:
        """Replace a worker when its job has ended. Any thread."""
        with self._crew.lock:
            link.retiring = True
            self._crew.settled = False
            if link.task is None:
                self._crew.call(self.dismiss, link)

    def dismiss(self, link: WorkerLink) -> None:
        """Let a worker go that has nothing to do: it ends by itself, or else by force."""
        with self._crew.lock:
            if link.dying or link.task is not None or link.stage is not Stage.READY:
                return
            self.condemn(link)
            started = self._crew.jobs.assign()
        self._crew.jobs.send(started)
        self._crew.send_or_lose(link, shutdown=pb.Shutdown(reason="another takes its place"))
        self._crew.loop.call_later(self._grace, self._end_dismissed, link)

    def _end_dismissed(self, link: WorkerLink) -> None:
        if link.alive:
            link.kill()

    def condemn(self, link: WorkerLink) -> None:
        """A worker that is about to be ended: it gets no more jobs, and another takes its place."""
        link.dying = True
        self._crew.settled = False

    def kill(self, link: WorkerLink) -> None:
        """End a worker, and let another take its place at the next ``promote``. What follows, follows from its exit.

        Any thread.
        """
        link.kill()
        self._crew.settled = False

    def give_up(self, link: WorkerLink, why: str = "") -> None:
        """Kill a worker that broke the rules or does not answer. ``on_exit`` does the rest. Any thread.

        ``why``: unless it was blamed already.
        """
        if why:
            link.blame(why)
        if link.alive:
            self.kill(link)

    # -------------------------------------------------------- found to have ended

    def watch(self, link: WorkerLink) -> None:
        """Notice the first sign of the death of a worker that is ready."""
        self._deathwatch.add(link)

    def on_sign_of_death(self, link: WorkerLink) -> None:
        """In the watch's thread. A heartbeat thread has died, or another worker, which can write its slot, wants us to
        think so.

        Its job is tried again at once, where how it died can't matter. All that was its own, it keeps until
        ``on_exit``, which waits for this.
        """
        for _ in range(_LOOKS):
            if not link.alive or link.dying:
                return  # on_exit is on its way, and knows more
            if link.process.exiting():
                break
            time.sleep(_LOOK)  # the kernel's word: other threads end some microseconds later
        else:
            log.warning("worker %s lives: its sign of life was tampered with", link.worker_id)
            return
        self.kill(link)
        self._crew.inbox.last_words(link)
        with self._crew.lock:
            if not self._crew.jobs.rescue(link):
                return
            started = self._crew.jobs.assign()
            self._crew.changed.ring()
        self._crew.jobs.send(started)

    def on_exit(self, link: WorkerLink) -> None:
        """The pidfd says that the process is gone: nothing of it runs or writes any more."""
        loop, nursery = self._crew.loop, self._crew.nursery
        if not link.ended:
            link.ended = True
            loop.remove_reader(link.process.pidfd)
            if nursery is not None and not nursery.knows_end(link):
                return  # the zygote is about to say how it ended, and then calls this again
        self._deathwatch.remove(link)
        self._crew.inbox.remove(link)
        for fd in (link.process.log_fd, link.listener.fd if link.listener else -1):
            if fd >= 0:
                loop.remove_reader(fd)
        self.condemn(link)
        if link.timer is not None:
            link.timer.cancel()  # it would hold all that the link has
        self._crew.inbox.last_words(link)
        status = link.process.reap()
        link.read_rest()  # where a denied call came from
        with self._crew.lock:
            self._crew.jobs.bury(link, status)
            link.close()
            self._crew.forget(link)
            started = self._crew.jobs.assign()
        self._crew.jobs.send(started)  # first of all: somebody waits for it
        self._replace(link, status)

    def _replace(self, link: WorkerLink, status: int | None) -> None:
        """Give back what a dead worker had, and launch another."""
        with self._crew.lock:
            self._crew.memory.give_back(link.lease)
            self._crew.changed.ring()
            if self._crew.closing:
                return
            if link.prepared or link.retiring or link.index >= self._crew.wanted:
                level = logging.INFO if link.retiring or status == 0 else logging.WARNING
                log.log(level, "worker %s: %s; another takes its place", link.worker_id, describe_exit(status))
                self._crew.launcher.launch(link.index)
                return
            why = explain_start(link, status)
            self._crew.launcher.failed(link.index, why, 1 if link.fault or link.denial else status)

    # ----------------------------------------------------- any thread: all of them

    def end_all(self) -> None:
        """Close the crew to all that comes, end every job and every worker, and wait until they are gone."""
        with self._crew.lock:
            self._crew.closing = True
            self._crew.jobs.fail_all(FabricClosed("the fabric was closed before the job ended"), running=True)
            links = self._crew.links()
            self._crew.changed.ring()
        for link in links:
            if link.idle:
                self._crew.send_or_lose(link, shutdown=pb.Shutdown(reason="the fabric is closing"))
            else:
                link.kill()
        nursery = self._crew.nursery
        if not self._await_ends(self._grace):
            if nursery is not None:
                nursery.kill()  # it may be what does not answer
            for link in self._crew.links():
                link.kill()
            self._await_ends(None)
        if nursery is not None:
            nursery.kill()
            with self._crew.lock:
                self._crew.changed.wait_for(lambda: nursery.closed)
        self._deathwatch.close()

    def _await_ends(self, timeout: float | None) -> bool:
        nursery = self._crew.nursery
        with self._crew.lock:
            return self._crew.changed.wait_for(
                lambda: not self._crew.links() and (nursery is None or not nursery.orders), timeout
            )
