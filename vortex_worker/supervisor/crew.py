"""The workers of one fabric: who there is, who is to run jobs, and what they say.

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
from vortex_worker.supervisor.bell import Bell
from vortex_worker.supervisor.denials import Denials
from vortex_worker.supervisor.endings import Endings
from vortex_worker.supervisor.inbox import Inbox
from vortex_worker.supervisor.job import refuse_in_callback
from vortex_worker.supervisor.jobs import Jobs
from vortex_worker.supervisor.launcher import Launcher
from vortex_worker.supervisor.link import Stage, WorkerLink
from vortex_worker.supervisor.preload import Preloads
from vortex_worker.supervisor.vigil import Limits, Vigil

if TYPE_CHECKING:
    from vortex_worker.config import WorkerConfig
    from vortex_worker.sandbox.learning import Lessons
    from vortex_worker.supervisor.memory import Memory
    from vortex_worker.supervisor.task import Work
    from vortex_worker.supervisor.thread import FabricThread

log = logging.getLogger("vortex_worker")

_FORKED = "this process was forked from the one that opened the fabric: open another here"


class Crew:
    """Keeps the workers. ``launcher`` starts them, ``jobs`` feeds them, ``endings`` ends them."""

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
        self._start_timeout = start_timeout
        self.lock = threading.RLock()
        #: Rung at every change that somebody may wait for.
        self.changed = Bell(self.lock)
        self._workers = workers
        self._standby = standby
        self._links: dict[int, WorkerLink] = {}  # by slot
        self._places = set(range(workers + standby))  # slots that have a worker, or are about to
        self._broken: VortexError | None = None
        #: Whether as many workers take jobs as are wanted, and nobody has come or gone since.
        self.settled = False
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
        self.endings = Endings(self, grace)
        self.launcher = Launcher(self, config, memory, zygote=zygote)
        self.nursery = self.launcher.nursery
        self._denials = Denials(self, lessons)
        #: What runs the loop.
        self.thread = thread
        self._limits = limits

    def open(self) -> None:
        """Begin. From then on it is to be closed."""
        self.loop.call_soon_threadsafe(self.inbox.open)
        if self.nursery is not None:
            self.loop.call_soon_threadsafe(self.nursery.open)
        for index in range(self._workers):
            self.loop.call_soon_threadsafe(self.launcher.launch, index)
        self.launcher.postpone(range(self._workers, self.wanted))
        self.loop.call_soon_threadsafe(Vigil(self, self._limits).look)
        self.thread.serve(self.loop)

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
                self.endings.retire(link)
        self.wait(lambda links: old.isdisjoint(links) and self.all_ready(links), timeout)

    def scale(self, workers: int) -> None:
        """Run ``workers`` workers from now on. More are launched at once; too many go when their jobs have ended."""
        with self.lock:
            self._workers = workers
            self.settled = False
            for index in range(self.wanted):
                if index not in self._places:
                    self._places.add(index)
                    self.call(self.launcher.launch, index)
            for link in self.links():
                if link.index >= self.wanted:
                    self.endings.retire(link)
            started = self.jobs.assign()
            self.changed.ring()
        self.jobs.send(started)

    @property
    def wanted(self) -> int:
        """How many workers there are to be: the slots below this have one."""
        return self._workers + self._standby

    def links(self) -> list[WorkerLink]:
        """The workers there are now."""
        with self.lock:
            return list(self._links.values())

    def all_ready(self, links: list[WorkerLink]) -> bool:
        """Whether every worker takes jobs, and every standby could."""
        return sum(link.ready and link.index < self.wanted for link in links) == self.wanted

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
        if self.settled:
            return
        self.settled = True  # before it is true: `kill` may say otherwise meanwhile
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
            self.settled = False

    def notify(self) -> None:
        """Wake who waits for a change."""
        with self.lock:
            self.changed.ring()

    def send_or_lose(self, link: WorkerLink, **body: Any) -> None:
        """Send a packet; a worker that can't be sent to is given up."""
        try:
            link.send(**body)
        except OSError as error:
            self.call(self.endings.give_up, link, f"it does not read its socket: {error}")

    def release(self, link: WorkerLink) -> None:
        """Tell a worker what is no longer needed; one that can't be told is given up."""
        try:
            link.flush_releases()
        except OSError as error:
            self.call(self.endings.give_up, link, f"it does not read its socket: {error}")

    def call(self, function: Callable[..., object], *args: Any) -> None:
        """Run it in the fabric's thread, unless that has ended."""
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(function, *args)

    # --------------------------------------------- the fabric's thread: life

    def _unexpected(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """A bug of ours in a callback: tell every caller rather than leave them waiting."""
        error = context.get("exception")
        log.error("internal error: %s", context.get("message"), exc_info=error)
        self.broken(LaunchError(f"internal error of the fabric: {error!r}"))

    def wants(self, index: int) -> bool:
        """Locked. Whether a slot is to have a worker."""
        if self.over or index >= self.wanted:
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
        self.loop.add_reader(link.process.pidfd, self.endings.on_exit, link)
        self.loop.add_reader(link.process.log_fd, self._on_log, link)
        link.timer = self.loop.call_later(self._start_timeout, self._check_started, link)

    def forget(self, link: WorkerLink) -> None:
        """Locked. A worker is gone."""
        del self._links[link.index]

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
                self.launcher.locked_down()
                self.endings.watch(link)
                if self.preloads.begin(link):
                    self.prepared(link)
            started = self.jobs.assign()
            self.changed.ring()
        self.jobs.send(started)

    def prepared(self, link: WorkerLink) -> None:
        """A worker has made all that is wanted in advance: it takes jobs, or a place."""
        with self.lock:
            if not link.alive:
                return
            self.launcher.succeeded()
            link.memory = link.process.memory()
            link.prepared = True
            self.settled = False
            if link.retiring:
                self.call(self.endings.dismiss, link)
            started = self.jobs.assign()
            self.changed.ring()
        self.jobs.send(started)

    def broken(self, error: VortexError) -> None:
        """No worker can be had: fail what waits and what comes."""
        with self.lock:
            self._broken = error
            self.jobs.fail_all(error, running=False)
            for link in self.links():
                if not link.prepared:
                    link.kill()
            self.changed.ring()

    def _check_started(self, link: WorkerLink) -> None:
        if link.alive and not link.prepared:
            self.endings.give_up(link, f"it was not ready within {self._start_timeout} s")

    # -------------------------------------------------------- any thread: end

    def close(self) -> None:
        """End every job and every worker, and the thread. Nothing is left behind.

        Idempotent: whoever calls it later, or beside, returns when all is done; one that was
        interrupted may be called again.
        """
        refuse_in_callback("close a fabric")
        with self._close_lock:
            if self.thread.is_alive():
                self.endings.end_all()
                self.call(self.loop.stop)
                self.thread.join()
                self.inbox.close()

    def close_later(self, then: Callable[[], object]) -> None:
        """Close when the jobs there are have ended, and do ``then``. In a thread of its own: any may drop a fabric."""

        def end() -> None:
            self.jobs.drain(None)
            self.close()
            then()

        threading.Thread(target=end, name="vortex-close", daemon=True).start()

    def leave_to_parent(self) -> None:
        """In a process that was just forked: all this is the parent's. Takes no lock, for one may have been held.

        Its workers must not live for our sake, nor hear from us: we keep none of its sockets.
        """
        self.forked_off = self.closing = True
        nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for link in list(self._links.values()):
            for fd in (
                link.socket.fileno(),
                link.process.log_fd,
                link.process.pidfd,
                link.listener.fd if link.listener else -1,
            ):
                if fd >= 0:
                    os.dup2(nothing, fd, inheritable=False)  # not closed: its number is still somebody's here
        if self.nursery is not None:
            self.nursery.leave_to_parent(nothing)
        os.close(nothing)
        self.jobs.leave_to_parent(FabricClosed(_FORKED))
