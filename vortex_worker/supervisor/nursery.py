"""Where workers come from: the zygote, kept alive, and what was ordered of it.

Everything here runs in the fabric's thread, but ``kill``. The zygote's own death touches no worker: a
new one is started, and what was ordered of the dead one is ordered again.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from vortex_worker.errors import ConfigError, LaunchError
from vortex_worker.sandbox import seccomp
from vortex_worker.sandbox.stages import Programs, compile_programs
from vortex_worker.supervisor.process import Channels, WorkerProcess, describe_exit
from vortex_worker.supervisor.recovery import Backoff
from vortex_worker.supervisor.zygote import Zygote

if TYPE_CHECKING:
    from vortex_worker.config import WorkerConfig
    from vortex_worker.supervisor.crew import Crew
    from vortex_worker.supervisor.launcher import Launcher
    from vortex_worker.supervisor.link import WorkerLink
    from vortex_worker.supervisor.memory import Lease

log = logging.getLogger("vortex_worker")

#: Requests that the zygote has at a time. Each has three descriptors in flight, and of those the kernel allows a
#: user no more than a worker may have open: beyond that, workers that start could not send theirs.
_AT_ONCE = 8
_PAUSE = 0.05  # s before a request is sent again that had no room
_LATE = 2.0  # s in which it must tell of a child's end, or a birth


class Order(NamedTuple):
    """A worker that was asked for."""

    slot: int
    config: WorkerConfig
    lease: Lease
    arena: int


class Nursery:
    """Keeps one zygote, and turns the orders of ``launcher`` into workers of ``crew``."""

    def __init__(self, launcher: Launcher, crew: Crew, config: WorkerConfig) -> None:
        self._launcher = launcher
        self._crew = crew
        self._loop = crew.loop
        self._config = config  # of every worker, but for its name
        self._programs: Programs | None = None
        self._zygote: Zygote | None = None
        self._numbers = itertools.count(1)
        self._starts = Backoff()
        self._closing = False
        #: Asked for, and not there yet; by number.
        self.orders: dict[int, Order] = {}
        self._unsent: deque[int] = deque()
        self._sent: dict[int, Channels] = {}  # what the zygote has been given for them
        #: Closed for good: no zygote is left.
        self.closed = False

    def open(self) -> None:
        """Start a zygote, and send it what has been ordered."""
        if self._closing:
            self._close()
            return
        try:
            first = self._crew.thread.first_zygote()
            self._zygote = zygote = first or Zygote(diffusion=bool(self._config.models))
        except LaunchError as error:
            self._failed(str(error), None)
            return
        self._loop.add_reader(zygote.fileno(), self._on_message, zygote)
        self._loop.add_reader(zygote.pidfd, self._on_death, zygote)
        self._compile()
        if self._programs is not None:
            zygote.give_programs(self._config, self._programs)
        self._unsent = deque(self.orders)
        self._send_more()

    def _compile(self) -> None:
        """The filters, here, where there is time while the zygote imports."""
        if self._programs is None and seccomp.available():
            with contextlib.suppress(ConfigError):  # which a worker meets again, and tells
                self._programs = compile_programs(self._config)

    def order(self, index: int, config: WorkerConfig, lease: Lease, arena: int) -> None:
        """Have a worker forked: ``launcher.born`` or ``launcher.not_born`` follows."""
        number = next(self._numbers)
        self.orders[number] = Order(index, config, lease, arena)
        self._unsent.append(number)
        self._send_more()

    def _send_more(self) -> None:
        """Send what the zygote may have at a time."""
        while self._zygote is not None and self._unsent and len(self._sent) < _AT_ONCE:
            number = self._unsent.popleft()
            try:
                self._sent[number] = Channels()
            except LaunchError as error:
                order = self.orders.pop(number)
                self._launcher.not_born(order.slot, order.lease, str(error), passing=True)
            else:
                self._send(number)

    def _send(self, number: int) -> None:
        zygote, order, channels = self._zygote, self.orders[number], self._sent[number]
        assert zygote is not None
        sent = zygote.fork(number, order.config, channels.its_socket.fileno(), order.arena, channels.its_log)
        if not sent:
            self._loop.call_later(_PAUSE, self._again, zygote, number)  # its queue is full
        elif zygote.ready:
            self._loop.call_later(_LATE, self._check_born, zygote, number)

    def _again(self, zygote: Zygote, number: int) -> None:
        if zygote is self._zygote and number in self.orders:
            self._send(number)

    def _check_born(self, zygote: Zygote, number: int) -> None:
        if zygote is self._zygote and number in self.orders:
            log.warning("the zygote is killed: it did not fork within %g s", _LATE)
            zygote.kill()

    def _on_message(self, zygote: Zygote) -> None:
        for message in zygote.receive():
            body = message.body
            if "ready" in body:
                zygote.ready = True
                for number in self._sent:
                    self._loop.call_later(_LATE, self._check_born, zygote, number)
                for link in self._crew.links():
                    self._guard(zygote, link)
            elif "forked" in body:
                zygote.forked = True
                self._starts.succeeded()
                order, channels = self.orders.pop(body["forked"]), self._sent.pop(body["forked"])
                if message.pidfd < 0:
                    _discard(channels)  # it finds them closed, and ends
                    why = "no descriptor is left for its process"
                    self._launcher.not_born(order.slot, order.lease, why, passing=True)
                else:
                    channels.close_its()
                    process = WorkerProcess(body["pid"], message.pidfd, channels)
                    process.zygote = zygote
                    self._launcher.born(order.slot, order.config, process, order.lease)
                self._send_more()
            elif "failed" in body:
                order = self.orders.pop(body["failed"])
                _discard(self._sent.pop(body["failed"]))
                self._launcher.not_born(order.slot, order.lease, f"the zygote could not fork: {body['why']}")
                self._send_more()
            elif "ended" in body:
                self._ended(zygote, body["ended"], body["status"])

    def _guard(self, zygote: Zygote, link: WorkerLink) -> None:
        """A worker whose zygote died before: this one is to end it if we die, which its own was to do."""
        if link.ended or zygote is not self._zygote or link.process.zygote is zygote:
            return
        if not zygote.guard(link.process.pidfd):
            self._loop.call_later(_PAUSE, self._guard, zygote, link)

    def _ended(self, zygote: Zygote, pid: int, status: int) -> None:
        for link in self._crew.links():
            if link.process.pid == pid and link.process.zygote is zygote:
                link.process.status = status
                if not link.ended:
                    self._loop.remove_reader(link.process.pidfd)
                    link.ended = True
                self._crew.endings.on_exit(link)

    def knows_end(self, link: WorkerLink) -> bool:
        """Whether all that can be known of a dead worker's end is known; else we are told in a moment."""
        zygote = link.process.zygote
        if link.process.status is not None or zygote is None or not zygote.alive:
            return True
        self._loop.call_later(_LATE, self._check_told, zygote, link)
        return False

    def _check_told(self, zygote: Zygote, link: WorkerLink) -> None:
        if link.alive and zygote.alive:
            log.warning("the zygote is killed: it did not tell of a worker's end within %g s", _LATE)
            zygote.kill()

    def _on_death(self, zygote: Zygote) -> None:
        self._on_message(zygote)
        self._loop.remove_reader(zygote.fileno())
        self._loop.remove_reader(zygote.pidfd)
        said = zygote.said()
        status = zygote.close()
        self._zygote = None
        for link in self._crew.links():
            if link.process.zygote is zygote and link.ended:
                self._crew.endings.on_exit(link)
        if self._closing:
            self._close()
            return
        # A child may have been forked that we were not told of: it finds these closed, and ends.
        for channels in self._sent.values():
            _discard(channels)
        self._sent.clear()
        why = f"the zygote {describe_exit(status)}" + (f"; it wrote:\n{said}" if said else "")
        if zygote.ready:
            log.warning("%s; starting another", why.splitlines()[0])
        if zygote.forked or (zygote.ready and not self.orders):
            self.open()
        else:  # before its time, or of the first that was ordered
            self._failed(why, status)

    def _failed(self, why: str, status: int | None) -> None:
        self._starts.failed(status)
        if self._starts.hopeless and not self._crew.any_ready():
            self._crew.broken(LaunchError(why))  # first, so that everybody is told why
            self._abandon()
        else:
            self._loop.call_later(self._starts.pause, self.open)

    def _abandon(self) -> None:
        for number in list(self.orders):
            order = self.orders.pop(number)
            if number in self._sent:
                _discard(self._sent.pop(number))
            self._launcher.not_born(order.slot, order.lease, "there is no zygote")

    def leave_to_parent(self, nothing: int) -> None:
        """In a process that was just forked: put ``nothing`` in the place of every descriptor."""
        zygote = self._zygote
        fds = [] if zygote is None else [zygote.fileno(), zygote.pidfd, zygote.log_fd]
        for channels in list(self._sent.values()):
            fds += [channels.socket.fileno(), channels.its_socket.fileno(), channels.log, channels.its_log]
        for fd in fds:
            if fd >= 0:
                os.dup2(nothing, fd, inheritable=False)

    def kill(self) -> None:
        """End it, for good. Any thread."""
        self._closing = True
        self._crew.call(self._end)

    def _end(self) -> None:
        if self._zygote is not None:
            self._zygote.kill()
        else:
            self._close()

    def _close(self) -> None:
        self.closed = True
        self._abandon()
        self._crew.notify()


def _discard(channels: Channels) -> None:
    """Close both ends."""
    channels.close_its()
    channels.close()
