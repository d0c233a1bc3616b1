"""The workers of one fabric: their life from launch to death.

One thread runs an asyncio loop over every worker's socket, pidfd and log. Callers send their jobs
from their own threads when a worker is idle, and read the results of those they wait for
(``inbox.py``); all else comes in through the loop. ``lock`` guards all state, the jobs' (``jobs.py``)
too; nothing that can block on a worker is done under it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vortex_worker.errors import (
    FabricClosed,
    LaunchError,
    ProtocolError,
    VortexError,
)
from vortex_worker.ipc import control_pb2 as pb
from vortex_worker.ipc import protocol
from vortex_worker.supervisor.deathwatch import DeathWatch
from vortex_worker.supervisor.denials import Denials
from vortex_worker.supervisor.inbox import Inbox
from vortex_worker.supervisor.job import refuse_in_callback
from vortex_worker.supervisor.jobs import Jobs
from vortex_worker.supervisor.launcher import Launcher
from vortex_worker.supervisor.link import Stage, WorkerLink
from vortex_worker.supervisor.preload import Preloads
from vortex_worker.supervisor.process import describe_exit
from vortex_worker.supervisor.recovery import explain_start
from vortex_worker.supervisor.vigil import Limits, Vigil

if TYPE_CHECKING:
    from vortex_worker.config import WorkerConfig
    from vortex_worker.sandbox.learning import Lessons
    from vortex_worker.supervisor.memory import Memory
    from vortex_worker.supervisor.task import Work
    from vortex_worker.supervisor.thread import FabricThread

log = logging.getLogger("vortex_worker")

_FORKED = "this process was forked from the one that opened the fabric: open another here"
_LOOK, _LOOKS = 0.0002, 20  # s between looks at whether a worker is really dying, and how often


class Crew:
    """Launches, watches and replaces the workers. ``jobs`` feeds them."""

    def __init__(
        self,
        config: WorkerConfig,
        workers: int,
        standby: int,
        memory: Memory,
        thread: FabricThread,
        *,
        zygote: bool,
        queue: int,
        grace: float,
        limits: Limits,
        start_timeout: float,
        preload: list[Work],
        lessons: Lessons | None,
    ) -> None:
        self.memory = memory
        self._grace = grace
        self._start_timeout = start_timeout
        self.lock = threading.RLock()
        #: Notified at every change that somebody may wait for.
        self.changed = threading.Condition(self.lock)
        self._workers = workers
        self._standby = standby
        self._links: dict[int, WorkerLink] = {}  # by slot
        self._places = set(range(workers + standby))  # slots that have a worker, or are about to
        self._broken: VortexError | None = None
        self._settled = False  # as many workers take jobs as are wanted, and nobody has come or gone since
        #: Whether the fabric is being closed, or is.
        self.closing = False
        #: Whether this is a copy, in a process that the program forked.
        self.forked_off = False
        self._close_lock = threading.Lock()
        self.loop = asyncio.new_event_loop()
        self.loop.set_exception_handler(self._unexpected)
        self.inbox = Inbox(self)
        self.jobs = Jobs(self, memory, queue, grace)
        self.preloads = Preloads(self, preload)
        self._launcher = Launcher(self, config, memory, zygote=zygote)
        self._nursery = self._launcher.nursery
        self._denials = Denials(self, lessons)
        self._deathwatch = DeathWatch(lambda link: self.call(self._on_sign_of_death, link))
        #: What runs the loop.
        self.thread = thread
        thread.serve(self.loop)
        self.loop.call_soon_threadsafe(self.inbox.open)
        if self._nursery is not None:
            self.loop.call_soon_threadsafe(self._nursery.open)
        for index in range(workers):
            self.loop.call_soon_threadsafe(self._launcher.launch, index)
        self._launcher.postpone(range(workers, workers + standby))
        self.loop.call_soon_threadsafe(Vigil(self, limits).look)

    # ------------------------------------------------------------ any thread

    def wait(self, ready: Callable[[list[WorkerLink]], bool], timeout: float | None) -> list[WorkerLink]:
        """Wait until ``ready(links)`` holds, and return the links.

        Raises:
            FabricClosed, LaunchError: it never will.
            TimeoutError: not within ``timeout`` s.
        """
        refuse_in_callback("wait for workers")
        with self.lock:
            if not self.changed.wait_for(lambda: self.over or ready(self.links()), timeout):
                raise TimeoutError(f"workers are not ready after {timeout} s")
            self.check_open()
            return self.links()

    def reload(self, timeout: float | None) -> None:
        """Replace every worker, each when its job has ended. TimeoutError: not all are replaced yet."""
        with self.lock:
            old = set(self.links())
            for link in old:
                self.retire(link)
        self.wait(lambda links: old.isdisjoint(links) and self.all_ready(links), timeout)

    def scale(self, workers: int) -> None:
        """Run ``workers`` workers from now on. More are launched at once; too many go when their jobs have ended."""
        with self.lock:
            self._workers = workers
            self._settled = False
            for index in range(self._wanted):
                if index not in self._places:
                    self._places.add(index)
                    self.call(self._launcher.launch, index)
            for link in self.links():
                if link.index >= self._wanted:
                    self.retire(link)
            started = self.jobs.assign()
            self.changed.notify_all()
        self.jobs.send(started)

    @property
    def _wanted(self) -> int:
        """How many workers there are to be: the slots below this have one."""
        return self._workers + self._standby

    def links(self) -> list[WorkerLink]:
        """The workers there are now."""
        with self.lock:
            return list(self._links.values())

    def all_ready(self, links: list[WorkerLink]) -> bool:
        """Whether every worker takes jobs, and every standby could."""
        return sum(link.ready and link.index < self._wanted for link in links) == self._wanted

    def any_ready(self) -> bool:
        """Whether there is a worker that takes jobs: then those that can't be started are no reason to stop."""
        return any(link.ready for link in self.links())

    def ranks(self) -> tuple[list[WorkerLink], list[WorkerLink]]:
        """Those that run jobs or will as soon as they can, and those that stand by for them."""
        links = sorted(
            (link for link in self.links() if not link.dying),
            key=lambda link: (not link.active, -link.stage.value, link.index),
        )
        return links[: self._workers], links[self._workers :]

    @property
    def over(self) -> bool:
        """Whether no job can run any more."""
        return self.closing or self._broken is not None

    def check_open(self) -> None:
        """Raise FabricClosed or LaunchError if no job can run any more."""
        if self.forked_off:
            raise FabricClosed(_FORKED)
        if self.closing:
            raise FabricClosed("the fabric is closed")
        if self._broken:
            raise self._broken

    def promote(self) -> None:
        """Locked. Let workers that stand by take the places of those that are gone or going.

        Costs nothing as long as nobody has come or gone.
        """
        if self._settled:
            return
        self._settled = True  # before it is true: `kill` may say otherwise meanwhile
        places = self._workers - sum(link.active and not link.dying and not link.retiring for link in self.links())
        for link in self.links() if places else ():
            if not link.ready or link.retiring:
                continue
            if places > 0 and not link.active:
                link.active = True
                self.jobs.free(link)
                places -= 1
            elif places < 0 and link.idle:
                link.active = False
                places += 1
        if places:
            self._settled = False

    def condemn(self, link: WorkerLink) -> None:
        """A worker that is about to be ended: it gets no more jobs, and another takes its place."""
        link.dying = True
        self._settled = False

    def kill(self, link: WorkerLink) -> None:
        """End a worker, and let another take its place at the next ``promote``. What follows, follows from its exit."""
        link.kill()
        self._settled = False

    def notify(self) -> None:
        """Wake who waits for a change."""
        with self.lock:
            self.changed.notify_all()

    def send_or_lose(self, link: WorkerLink, **body: Any) -> None:
        """Send a packet; a worker that can't be sent to is given up."""
        try:
            link.send(**body)
        except OSError as error:
            self.call(self.give_up, link, f"it does not read its socket: {error}")

    def release(self, link: WorkerLink) -> None:
        """Tell a worker what is no longer needed; one that can't be told is given up."""
        try:
            link.flush_releases()
        except OSError as error:
            self.call(self.give_up, link, f"it does not read its socket: {error}")

    def call(self, function: Callable[..., object], *args: Any) -> None:
        """Run it in the fabric's thread, unless that has ended."""
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(function, *args)

    # ------------------------------------- the fabric's thread: life and death

    def _unexpected(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """A bug of ours in a callback: tell every caller rather than leave them waiting."""
        error = context.get("exception")
        log.error("internal error: %s", context.get("message"), exc_info=error)
        self.broken(LaunchError(f"internal error of the fabric: {error!r}"))

    def wants(self, index: int) -> bool:
        """Locked. Whether a slot is to have a worker."""
        if self.over or index >= self._wanted:
            self._places.discard(index)
            return False
        return True

    def adopt(self, link: WorkerLink) -> None:
        """Watch a worker that was launched."""
        with self.lock:
            link.learning = self._denials.learning
            self._links[link.index] = link
            if self.closing:
                link.kill()
        self.inbox.add(link)
        self.loop.add_reader(link.process.pidfd, self.on_exit, link)
        self.loop.add_reader(link.process.log_fd, self._on_log, link)
        link.timer = self.loop.call_later(self._start_timeout, self._check_started, link)

    def _on_log(self, link: WorkerLink) -> None:
        if not link.read_log():
            self.loop.remove_reader(link.process.log_fd)

    def handle(self, link: WorkerLink, message: protocol.Message) -> None:
        """Act on a message. The thread that reads this worker; raises what makes it unfit for more."""
        if link.denial is not None or link.lost or link.fault:
            return  # whatever it says after that
        match message:
            case protocol.JobResult():
                self.jobs.take_result(link, message)
            case protocol.JobProgress():
                self.jobs.take_progress(link, message)
            case pb.Handshake():
                self._shake_hands(link, message)
            case pb.Fault():
                raise ProtocolError(f"it says of our traffic: {protocol.printable(message.reason, 500)}")
            case pb.Pong():
                pass
            case _:
                raise ProtocolError(f"a supervisor takes no {type(message).__name__}")

    def _shake_hands(self, link: WorkerLink, message: pb.Handshake) -> None:
        with self.lock:
            link.shake_hands(message)
            if link.stage is Stage.LOCKED and link.listener is not None:
                self.loop.add_reader(link.listener.fd, self._denials.heard, link)
            if link.stage is Stage.READY:
                self._launcher.locked_down()
                self._deathwatch.add(link)
                if self.preloads.begin(link):
                    self.prepared(link)
            started = self.jobs.assign()
            self.changed.notify_all()
        self.jobs.send(started)

    def prepared(self, link: WorkerLink) -> None:
        """A worker has made all that is wanted in advance: it takes jobs, or a place."""
        with self.lock:
            if not link.alive:
                return
            self._launcher.succeeded()
            link.memory = link.process.memory()
            link.prepared = True
            self._settled = False
            if link.retiring:
                self.call(self.dismiss, link)
            started = self.jobs.assign()
            self.changed.notify_all()
        self.jobs.send(started)

    def give_up(self, link: WorkerLink, why: str = "") -> None:
        """Kill a worker that broke the rules or does not answer. ``on_exit`` does the rest.

        ``why``: unless it was blamed already.
        """
        if why:
            link.blame(why)
        if link.alive:
            self.kill(link)

    def _on_sign_of_death(self, link: WorkerLink, looks: int = 0) -> None:
        """Its heartbeat thread has died, or another worker, which can write its slot, wants us to think so.

        Its job is tried again at once, where how it died can't matter. All that was its own, it keeps until
        ``on_exit``.
        """
        if not link.alive or link.dying:
            return  # on_exit is on its way, and knows more
        if not link.process.exiting():  # the kernel's word: other threads end some microseconds later
            if looks < _LOOKS:
                self.loop.call_later(_LOOK, self._on_sign_of_death, link, looks + 1)
            else:
                log.warning("worker %s lives: its sign of life was tampered with", link.worker_id)
            return
        self.kill(link)
        self.inbox.last_words(link)
        with self.lock:
            if not self.jobs.rescue(link):
                return
            started = self.jobs.assign()
            self.changed.notify_all()
        self.jobs.send(started)

    def on_exit(self, link: WorkerLink) -> None:
        """The pidfd says that the process is gone: nothing of it runs or writes any more."""
        if not link.ended:
            link.ended = True
            self.loop.remove_reader(link.process.pidfd)
            self._deathwatch.remove(link)
            if self._nursery is not None and not self._nursery.knows_end(link):
                return  # the zygote is about to say how it ended, and then calls this again
        self.inbox.remove(link)
        for fd in (link.process.log_fd, link.listener.fd if link.listener else -1):
            if fd >= 0:
                self.loop.remove_reader(fd)
        link.dying = True
        self._settled = False
        if link.timer is not None:
            link.timer.cancel()  # it would hold all that the link has
        self.inbox.last_words(link)
        status = link.process.reap()
        link.read_rest()  # where a denied call came from
        with self.lock:
            self.jobs.bury(link, status)
            link.close()
            del self._links[link.index]
            started = self.jobs.assign()
        self.jobs.send(started)  # first of all: somebody waits for it
        self._replace(link, status)

    def _replace(self, link: WorkerLink, status: int | None) -> None:
        """Give back what a dead worker had, and launch another."""
        with self.lock:
            self.memory.give_back(link.lease)
            self.changed.notify_all()
            if self.closing:
                return
            if link.prepared or link.retiring or link.index >= self._wanted:
                log.info("worker %s: %s", link.worker_id, describe_exit(status))
                self._launcher.launch(link.index)
                return
            why = explain_start(link, status)
            self._launcher.failed(link.index, why, 1 if link.fault or link.denial else status)

    def broken(self, error: VortexError) -> None:
        """No worker can be had: fail what waits and what comes."""
        with self.lock:
            self._broken = error
            self.jobs.fail_all(error, running=False)
            for link in self.links():
                if not link.prepared:
                    link.kill()
            self.changed.notify_all()

    def _check_started(self, link: WorkerLink) -> None:
        if link.alive and not link.prepared:
            self.give_up(link, f"it was not ready within {self._start_timeout} s")

    def retire(self, link: WorkerLink) -> None:
        """Replace a worker when its job has ended. Any thread."""
        with self.lock:
            link.retiring = True
            self._settled = False
            if link.task is None:
                self.call(self.dismiss, link)

    def dismiss(self, link: WorkerLink) -> None:
        """Let a worker go that has nothing to do: it ends by itself, or else by force."""
        with self.lock:
            if link.dying or link.task is not None or link.stage is not Stage.READY:
                return
            link.dying = True
            self._settled = False
            started = self.jobs.assign()
        self.jobs.send(started)
        self.send_or_lose(link, shutdown=pb.Shutdown(reason="another takes its place"))
        self.loop.call_later(self._grace, self._end_dismissed, link)

    def _end_dismissed(self, link: WorkerLink) -> None:
        if link.alive:
            link.kill()

    # -------------------------------------------------------- any thread: end

    def close(self) -> None:
        """End every job and every worker, and the thread. Nothing is left behind.

        Idempotent: whoever calls it later, or beside, returns when all is done; one that was
        interrupted may be called again.
        """
        refuse_in_callback("close a fabric")
        with self._close_lock:
            if self.thread.is_alive():
                self._end_all()
                if self._nursery is not None:
                    self._nursery.kill()
                    with self.lock:
                        self.changed.wait_for(lambda: self._nursery is None or self._nursery.closed)
                self._deathwatch.close()
                self.call(self.loop.stop)
                self.thread.join()
                self.inbox.close()

    def leave_to_parent(self) -> None:
        """In a process that was just forked: all this is the parent's. Takes no lock, for one may have been held.

        Its workers must not live for our sake, nor hear from us: we keep none of its sockets.
        """
        self.forked_off = self.closing = True
        nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for link in list(self._links.values()):
            for fd in (
                link.fileno(),
                link.process.log_fd,
                link.process.pidfd,
                link.listener.fd if link.listener else -1,
            ):
                if fd >= 0:
                    os.dup2(nothing, fd, inheritable=False)  # not closed: its number is still somebody's here
        if self._nursery is not None:
            self._nursery.leave_to_parent(nothing)
        os.close(nothing)
        self.jobs.leave_to_parent(FabricClosed(_FORKED))

    def _end_all(self) -> None:
        with self.lock:
            self.closing = True
            self.jobs.fail_all(FabricClosed("the fabric was closed before the job ended"), running=True)
            links = self.links()
            self.changed.notify_all()
        for link in links:
            if link.idle:
                self.send_or_lose(link, shutdown=pb.Shutdown(reason="the fabric is closing"))
            else:
                link.kill()
        if not self._await_ends(self._grace):
            if self._nursery is not None:
                self._nursery.kill()  # it may be what does not answer
            for link in self.links():
                link.kill()
            self._await_ends(None)

    def _await_ends(self, timeout: float | None) -> bool:
        with self.lock:
            return self.changed.wait_for(
                lambda: not self._links and (self._nursery is None or not self._nursery.orders), timeout
            )
