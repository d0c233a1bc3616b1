"""What workers say, and who reads it: the fabric's thread, or a caller who waits for that worker's job.

A caller who waits would else be woken by the fabric's thread, which the kernel has woken first: two wakes
where one will do. So whoever holds a link's ``reading`` lock reads its socket and acts on what it gets.
The fabric's thread finds out which sockets are readable by an epoll of its own, in which each is watched
for one event at a time (EPOLLONESHOT); a socket that a caller reads is left alone. The rule that keeps a
message from lying unread: a link that runs a job is watched, or somebody holds its lock and will have it
watched when leaving. ``Vigil`` has idle ones watched, so that what a worker says unasked is heard, too.
"""

from __future__ import annotations

import contextlib
import select
import time
from typing import TYPE_CHECKING

from vortex_worker.errors import JobError, LaunchError
from vortex_worker.ipc import protocol
from vortex_worker.supervisor.job import ENDS
from vortex_worker.supervisor.link import Stage

if TYPE_CHECKING:
    from vortex_worker.supervisor.crew import Crew
    from vortex_worker.supervisor.job import Job
    from vortex_worker.supervisor.link import WorkerLink

_ONCE = select.EPOLLIN | select.EPOLLONESHOT
_NEVER = select.EPOLLONESHOT  # but for a hang-up, which can't be left out: once, and not for as long as it lasts
_BURST = 64  # messages of one worker that are taken before others get their turn
_GLANCE = 0.005  # s between looks at whether a job that is not next is still to be waited for here
_LOOK = 0.5  # s between such looks for the job that is next: it may have been found to be one that can't be sent
_HANDOVER = 1.0  # s that a caller has to leave a worker that has died


class Inbox:
    """The sockets of one fabric's workers."""

    def __init__(self, crew: Crew) -> None:
        self._crew = crew
        self._epoll = select.epoll()
        self._links: dict[int, WorkerLink] = {}

    # ------------------------------------------------------- the fabric's thread

    def open(self) -> None:
        """Begin."""
        self._crew.loop.add_reader(self._epoll.fileno(), self._on_readable)

    def close(self) -> None:
        """When the fabric's thread has ended."""
        self._epoll.close()

    def add(self, link: WorkerLink) -> None:
        """Read a new worker's socket."""
        self._links[link.socket.fileno()] = link
        self._epoll.register(link.socket.fileno(), _ONCE)

    def remove(self, link: WorkerLink) -> None:
        """Read it no more. Idempotent."""
        if self._links.get(link.socket.fileno()) is link:
            del self._links[link.socket.fileno()]
            self._epoll.unregister(link.socket.fileno())

    def _on_readable(self) -> None:
        for fd, _ in self._epoll.poll(0):
            link = self._links.get(fd)
            if link is not None:
                self.read(link)

    def read(self, link: WorkerLink) -> None:
        """Act on what is here, and have it watched, unless a caller is doing so. The fabric's thread."""
        if not link.alive:
            return
        if not link.reading.acquire(blocking=False):
            return  # and has it watched when leaving
        try:
            for message in link.receive(_BURST):
                self._crew.handle(link, message)
        except (JobError, LaunchError) as error:
            self._crew.endings.give_up(link, str(error))
        except OSError:  # reset by its death, which the pidfd reports
            if link.stage is not Stage.READY:  # or we had no descriptor left to look at it: another starts later
                self._crew.endings.kill(link)
        finally:
            link.reading.release()
        if link.unread:
            self._crew.call(self.read, link)  # after the others; there may be no event for it
        if link.socket.eof and link.alive:
            self.remove(link)
            self._crew.endings.kill(link)  # it may have closed the socket and live on; on_exit follows either way
        self.watch(link)

    def last_words(self, link: WorkerLink) -> None:
        """Results that were sent before a death still count."""
        if not link.reading.acquire(timeout=_HANDOVER):  # who waits there was woken: by `kill`, or the stream's end
            return
        try:
            for message in link.receive():
                if isinstance(message, protocol.JobResult) and not link.fault and link.denial is None:
                    self._crew.jobs.take_result(link, message)
        except (JobError, OSError):
            pass  # its death is reported anyway
        finally:
            link.reading.release()

    # ---------------------------------------------------------------- any thread

    def watch(self, link: WorkerLink) -> None:
        """Have the fabric's thread read it when there is something, now or later."""
        fd = link.socket.fileno()
        if self._links.get(fd) is link:
            with contextlib.suppress(OSError, ValueError):  # it was removed meanwhile, or the fabric closed
                link.watched = True
                self._epoll.modify(fd, _ONCE)

    def _unwatch(self, link: WorkerLink) -> None:
        """Spare the fabric's thread a wake, by whoever holds the lock: what comes is read here."""
        fd = link.socket.fileno()
        if link.watched and self._links.get(fd) is link:
            with contextlib.suppress(OSError, ValueError):
                link.watched = False
                self._epoll.modify(fd, _NEVER)

    def attend(self, job: Job, timeout: float | None) -> None:
        """Read for ``job`` from the worker that was given it, until it ends or another has it, or for ``timeout`` s.

        May return earlier: somebody else reads it, its worker died, or none has it. Then its end is to be waited for.
        """
        link = job._runner
        if link is None:
            return
        mine = False
        try:
            mine = link.reading.acquire(blocking=False)
            if mine:
                self._hear(link, job, timeout)
        except BaseException:  # Ctrl-C
            self._crew.jobs.interrupted()
            raise
        finally:
            try:
                link.reading.release()  # with nothing before it where Ctrl-C could come between
            except RuntimeError:  # it is another's
                mine = False
            if not mine:
                pass
            elif link.socket.buffered:
                self._crew.call(self.read, link)  # nothing more may come, and so no event
            elif link.task is not None:
                self.watch(link)

    def _hear(self, link: WorkerLink, job: Job, timeout: float | None) -> None:
        """Read for ``job``, by whoever holds the lock."""
        self._unwatch(link)
        handled = link.socket.taken
        until = None if timeout is None else time.monotonic() + timeout
        message: protocol.Message | None = None  # that was taken last, as far as is known
        try:
            while (task := link.task) is not None and job._runner is link and job.state not in ENDS:
                # It may be ended, or taken back, which wakes nobody.
                patience = _LOOK if task.job is job else _GLANCE
                if until is not None:
                    patience = min(patience, until - time.monotonic())
                    if patience <= 0:  # however much it has to say
                        break
                message = None
                try:
                    message = link.wait(patience)
                except TimeoutError:
                    continue
                if message is None:
                    break
                self._crew.handle(link, message)
                handled += 1
            # Of those behind it: what is here needs nobody else to be woken.
            while link.task is not None and link.socket.more:
                message = None
                message = link.wait(0)
                if message is None:
                    break
                self._crew.handle(link, message)
                handled += 1
        except (JobError, LaunchError) as error:
            link.blame(str(error))  # before anybody reads on
            self._crew.call(self._crew.endings.give_up, link)
        except OSError:
            pass  # the time is up; or it was reset by its death, which the pidfd reports
        except BaseException:  # Ctrl-C
            if link.socket.taken != handled and not isinstance(message, protocol.JobProgress):
                link.blame("its answer was lost: who read it was interrupted")
                self._crew.call(self._crew.endings.give_up, link)
            raise
