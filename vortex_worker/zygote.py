"""The zygote: a process that has imported everything a worker needs, and forks workers on request.

``python -m vortex_worker.zygote``, started by the embedded supervisor with ``VORTEX_ZYGOTE_FD``, a
SOCK_SEQPACKET socket, and ``VORTEX_ZYGOTE_DIFFUSION`` where its workers have folders of models. Each message
is one JSON object; descriptors travel beside it:

====================================================  ==========================================
supervisor → zygote ``{"fork": n, "config": {…}}``    with socket, arena and log of the worker
supervisor → zygote ``{"programs": […],               the filters that workers of such a configuration need: before
                        "config": {…}}``              the first of them, so that they needn't be compiled here
supervisor → zygote ``{"ward": true}``                with a pidfd of a worker whose zygote has died
zygote → supervisor ``{"ready": true}``               once, when everything is imported
zygote → supervisor ``{"settled": true}``             once, when its memory has been gathered
zygote → supervisor ``{"forked": n, "pid": p}``       with a pidfd of it
zygote → supervisor ``{"failed": n, "why": "…"}``     no such process could be made
zygote → supervisor ``{"ended": p, "status": s}``     ``s`` below 0: the signal
====================================================  ==========================================

It has one thread, and refuses to work with more: a fork copies only the thread that calls it, and
locks that another one held stay locked in the child. It runs no parallel region, so that each worker
can start a thread pool of its own; it opens no device, reads no file of a user and runs no node. Its
memory is frozen for the garbage collector, so that workers go on sharing it, and gathered in huge pages
when the first workers have been forked.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import resource
import select
import signal
import socket
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from vortex_worker._core import process
from vortex_worker.config import WorkerConfig
from vortex_worker.defaults import ZYGOTE_MESSAGE
from vortex_worker.device import cpu
from vortex_worker.errors import ConfigError
from vortex_worker.sandbox.stages import Programs, programs, remember_programs, visible

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_SCRATCH = 8 << 20  # bytes of memory to rehearse in
_BEREFT = signal.SIGPWR  # which nobody else sends
_QUIET = 0.2  # s without a message, after which there is leisure
_LATEST = 1.0  # s after which it is taken, in steps between messages
EXIT_THREADS = 5  # something it imported had started a thread


class Birth(NamedTuple):
    """What a child finds itself to be."""

    config: WorkerConfig
    log: int


class Zygote:
    """Serves one supervisor."""

    def __init__(self, control: socket.socket, threads: int) -> None:
        self._control = control
        self._threads = threads  # of a worker that names no number
        self._poll = select.epoll()
        self._poll.register(control, select.EPOLLIN)
        self._children: dict[int, int] = {}  # pid by pidfd
        self._wards: set[int] = set()  # pidfds of workers that another zygote forked, which has died

    def serve(self) -> Birth:
        """Fork and report until the supervisor hangs up. Returns in each child: its Birth."""
        # The kernel's word of the supervisor's end. A worker hears of that by its heartbeat, which a hostile node can
        # stop; we can't be stopped by one.
        signal.signal(_BEREFT, self._end_all)
        process.die_with_parent(_BEREFT)
        self._say({"ready": True})
        leisure: Iterator[object] | None = _settle()
        latest = time.monotonic() + _LATEST
        patience = _QUIET
        while True:
            patience = max(0, min(patience, latest - time.monotonic()))
            events = self._poll.poll(patience if leisure else None)
            if leisure and (not events or not patience):
                patience = 0
                if next(leisure, _settle) is _settle:
                    leisure = None
                    self._say({"settled": True})
            for fd, _ in events:
                if fd == self._control.fileno():
                    try:
                        data, fds, _, _ = socket.recv_fds(self._control, ZYGOTE_MESSAGE, 3)
                    except ConnectionError:
                        data = b""
                    if not data:
                        self._end_all()
                    order = json.loads(data)
                    if "programs" in order:
                        remember_programs(_config_of(order), Programs.unpack(order["programs"]))
                    elif "ward" in order:
                        self._wards.update(fds)
                        for pidfd in fds:
                            self._poll.register(pidfd, select.EPOLLIN)
                    elif (birth := self._fork(order, fds)) is not None:
                        return birth
                elif fd in self._wards:
                    self._wards.discard(fd)
                    self._poll.unregister(fd)
                    os.close(fd)  # who asked us hears of its end by itself
                else:
                    self._report_end(fd)

    def _fork(self, order: Mapping[str, Any], fds: list[int]) -> Birth | None:
        control, arena, log = fds
        with contextlib.suppress(ConfigError):  # which the child meets again, and tells
            config = _config_of(order)
            programs(config)  # compiled once, for all
            visible(config)
        try:
            pid = os.fork()
        except OSError as error:
            self._say({"failed": order["fork"], "why": str(error)})
            pid = -1
        if pid == 0:
            signal.signal(_BEREFT, signal.SIG_DFL)
            try:
                config = WorkerConfig.from_env(
                    order["config"] | {"VORTEX_SOCKET": f"fd:{control}", "VORTEX_SHM_FD": str(arena)}
                )
            except ConfigError as error:  # a folder that is gone meanwhile
                from vortex_worker.main import EXIT_BAD_CONFIG

                os.write(log, f"vortex-worker: {error}\n".encode())
                os._exit(EXIT_BAD_CONFIG)
            return Birth(replace(config, threads=config.threads or self._threads), log)
        for fd in fds:
            os.close(fd)
        if pid > 0:
            pidfd = os.pidfd_open(pid)  # not reaped yet, so the number is still its own
            self._children[pidfd] = pid
            self._poll.register(pidfd, select.EPOLLIN)
            self._say({"forked": order["fork"], "pid": pid}, [pidfd])
        return None

    def _end_all(self, *_: object) -> NoReturn:
        """The supervisor is gone: end every worker, and this process."""
        for pidfd in (*self._children, *self._wards):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os._exit(0)

    def _report_end(self, pidfd: int) -> None:
        pid = self._children.pop(pidfd)
        self._poll.unregister(pidfd)
        end = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
        os.close(pidfd)
        assert end is not None
        self._say({"ended": pid, "status": end.si_status if end.si_code == os.CLD_EXITED else -end.si_status})

    def _say(self, message: dict[str, Any], fds: list[int] | None = None) -> None:
        try:
            socket.send_fds(self._control, [json.dumps(message).encode()], fds or [])
        except ConnectionError:
            pass  # the supervisor is gone: the next read says so, too


def _config_of(order: Mapping[str, Any]) -> WorkerConfig:
    """All of it but the descriptors."""
    return WorkerConfig.from_env(order["config"] | {"VORTEX_SOCKET": "fd:0", "VORTEX_SHM_FD": "0"}).settled()


def _prepare() -> int:
    """Import and run what workers would else each import and run. Returns torch's number of threads."""
    from vortex_worker.device import cuda, metal  # noqa: F401
    from vortex_worker.executor.registry import Registry, installed
    from vortex_worker.ipc.capabilities import pack_ops
    from vortex_worker.main import JOB_MODULES
    from vortex_worker.sandbox.preload import preload, preload_diffusion

    registry = Registry()
    registry.load_builtin()
    pack_ops(registry.specs())
    installed()
    preload(JOB_MODULES)
    import vortex_worker.membership  # noqa: F401

    if os.environ.pop("VORTEX_ZYGOTE_DIFFUSION", ""):
        preload_diffusion()
    threads = cpu.threads()
    cpu.device()
    cpu.warm_up(threads=1)  # in this thread
    return threads


def _settle() -> Iterator[object]:
    """What makes later workers better, but the first need not wait for: some tenths of a second, in small steps.

    The first workers keep the memory as it was, and don't share it with later ones: about 70 MB.
    """
    from vortex_worker.sandbox.preload import preload_plain

    for work in (*cpu.first_kernels(), _rehearse, *preload_plain()):
        yield work()
    gc.freeze()
    yield from process.collapse()


def _rehearse() -> None:
    """Run a job as a worker does, in memory of our own: its children find that code warm."""
    from vortex_worker._core.arena import Arena
    from vortex_worker._core.lease import LeaseAllocator
    from vortex_worker.engine import Engine
    from vortex_worker.executor.registry import Registry
    from vortex_worker.logging import Logger

    registry = Registry()
    registry.load_builtin()
    arena = Arena.create(_SCRATCH)
    allocator = LeaseAllocator(arena.data_offset, _SCRATCH // 2)
    engine = Engine(cpu.device(), arena, allocator, registry, Logger("zygote", "warning"))
    engine.rehearse()
    engine.close()
    del engine
    arena.close()


def _become(birth: Birth) -> int:
    """In a child: be the worker it was forked to be. Returns its exit status."""
    os.dup2(birth.log, 1)
    os.dup2(birth.log, 2)
    process.set_name(b"vw-worker")
    gc.enable()
    from vortex_worker import device
    from vortex_worker.main import run as run_worker

    device.seed_anew()
    return run_worker(birth.config)


def _hung_up(control: socket.socket) -> bool:
    """Whether nobody is at the other end any more."""
    poll = select.poll()
    poll.register(control, select.POLLRDHUP)
    return bool(poll.poll(0))


def main() -> int:
    """Prepare, serve, and in each child become a worker. Returns the exit status."""
    control = socket.socket(fileno=int(os.environ.pop("VORTEX_ZYGOTE_FD")))
    process.die_with_parent()
    if _hung_up(control):
        return 0  # the supervisor had died before that
    process.set_name(b"vw-zygote")
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # one descriptor a worker, however many there will be
    gc.disable()
    with cpu.growing():
        threads = _prepare()
    from vortex_worker._core.lockdown import thread_count

    if thread_count() != 1:
        print(f"zygote: {thread_count()} threads run after the imports: a fork would break them", file=sys.stderr)
        return EXIT_THREADS
    # Not collected first: that takes as long as a tenth of the imports, and what it would free is shared by all.
    gc.freeze()
    birth = Zygote(control, threads).serve()
    control.close()  # a child's copy of it; else it would be closed by the garbage collector, at some later time
    return _become(birth)


def run() -> NoReturn:
    """``main`` as a program."""
    status = main()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    run()
