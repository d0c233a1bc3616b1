"""One worker process: launched, checked from outside, ended. Knows nothing of jobs."""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, Self

from vortex_worker.config import WorkerConfig
from vortex_worker.errors import ConfigError, LaunchError
from vortex_worker.supervisor.environment import environment

if TYPE_CHECKING:
    from vortex_worker.supervisor.zygote import Zygote

# <linux/pidfd.h>: _IOWR(0xFF, 11, struct pidfd_info), 64 bytes, with exit_code at 60.
_PIDFD_GET_INFO = 0xC040FF0B
_PIDFD_INFO_SIZE = 64
_PIDFD_INFO_EXIT = 1 << 3
_PF_EXITING = 4  # <linux/sched.h>
_DESCRIPTORS = 4  # of a worker in this process: socket, log, pidfd, listener of its filter
_SPARE_DESCRIPTORS = 128  # beside those that are open: workers on their way, and the program's own
_SEND_BUFFER = 1 << 20  # bytes: a submit of ordinary size never waits for the worker to read


class Verdict(NamedTuple):
    """What ``/proc`` says of a worker's sandbox: the kernel's word, not the worker's."""

    seccomp: int  # 2: filter mode, in every thread
    filters: int  # installed filters, the fewest of any thread
    no_new_privs: bool
    capabilities: int  # effective capabilities, as a bit set

    def holds(self, filters: int) -> bool:
        """At least so many filters, and the rest, are in force."""
        return self.seccomp == 2 and self.filters >= filters and self.no_new_privs and self.capabilities == 0


class Channels:
    """A new worker's socket and log: our ends, and those it is to get."""

    def __init__(self) -> None:
        """Raises LaunchError: no descriptors are left."""
        try:
            self.socket, self.its_socket = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
            self.log, self.its_log = os.pipe2(os.O_CLOEXEC)
        except OSError as error:
            raise LaunchError(f"a worker's channels could not be opened: {error}") from error
        os.set_blocking(self.log, False)

    def close_its(self) -> None:
        """Close the worker's ends, once it has them or never will."""
        self.its_socket.close()
        os.close(self.its_log)

    def close(self) -> None:
        """Close our ends."""
        self.socket.close()
        os.close(self.log)


def reserve_descriptors(workers: int) -> None:
    """Let this process open as many files as ``workers`` workers take, if it may not already.

    Raises:
        ConfigError: its hard limit forbids that.
    """
    needed = len(os.listdir("/dev/fd")) + _DESCRIPTORS * workers + _SPARE_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if resource.RLIM_INFINITY not in (soft, hard) and needed > hard:
        raise ConfigError(
            f"{workers} workers take about {needed} open files: this process may have {hard} (ulimit -Hn)"
        )
    if soft != resource.RLIM_INFINITY and needed > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


class WorkerProcess:
    """A worker's process and the supervisor's ends of its socket and its log."""

    def __init__(self, pid: int, pidfd: int, channels: Channels, popen: subprocess.Popen[bytes] | None = None) -> None:
        """``popen``: it is our child; else a zygote's, whose report sets ``status``."""
        self.pid = pid
        self.pidfd = pidfd
        self.socket_fd = channels.socket.detach()  # owned by the FrameSocket made over it
        self.log_fd = channels.log
        self.popen = popen
        #: Who forked it, if a zygote did.
        self.zygote: Zygote | None = None
        #: Exit status (negative: the signal) that the zygote told; None: not yet, or never.
        self.status: int | None = None

    @classmethod
    def execute(cls, config: WorkerConfig, arena_fd: int) -> Self:
        """Start ``python -m vortex_worker.main`` on channels of its own.

        Raises:
            LaunchError: the process could not be started.
        """
        channels = Channels()
        theirs = channels.its_socket
        try:
            config = replace(config, socket=f"fd:{theirs.fileno()}", shm_fd=arena_fd)
            popen = subprocess.Popen(
                # -P: what lies in the working directory is not importable
                [sys.executable, "-P", "-m", "vortex_worker.main"],
                stdin=subprocess.DEVNULL,
                stdout=channels.its_log,
                stderr=channels.its_log,
                pass_fds=(theirs.fileno(), arena_fd),
                env=environment() | config.to_env(),
                start_new_session=True,  # the terminal's Ctrl-C is for the supervisor alone
            )
        except OSError as error:
            channels.close()
            raise LaunchError(f"worker {config.worker_id} could not be started: {error}") from error
        finally:
            channels.close_its()
        return cls(popen.pid, os.pidfd_open(popen.pid), channels, popen)

    def verify(self) -> Verdict:
        """Read every thread's sandbox state from ``/proc``. All zero once the process is gone."""
        own = _status("/proc/self/status").get("Seccomp_filters", "0")
        verdicts = []
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{self.pid}/task"):
                fields = _status(f"/proc/{self.pid}/task/{task}/status")
                verdicts.append(
                    Verdict(
                        seccomp=int(fields.get("Seccomp", "0")),
                        filters=int(fields.get("Seccomp_filters", "0")) - int(own),
                        no_new_privs=fields.get("NoNewPrivs") == "1",
                        capabilities=int(fields.get("CapEff", "0"), 16),
                    )
                )
        if not verdicts:
            return Verdict(0, 0, False, 0)
        return Verdict(
            seccomp=min(v.seccomp for v in verdicts),
            filters=min(v.filters for v in verdicts),
            no_new_privs=all(v.no_new_privs for v in verdicts),
            capabilities=max(v.capabilities for v in verdicts),
        )

    def memory(self) -> int:
        """Bytes of memory that no file backs (proc(5), statm: resident less shared). 0 once it is gone."""
        try:
            with open(f"/proc/{self.pid}/statm") as file:
                fields = file.read().split()
        except OSError:
            return 0
        return (int(fields[1]) - int(fields[2])) * os.sysconf("SC_PAGE_SIZE")

    def exiting(self) -> bool:
        """Whether its end is certain: the kernel has begun it, or has a SIGKILL that its first thread can't escape.

        proc(5), stat: state; PF_EXITING among the flags; the pending signals.
        """
        fields = self._stat()
        if not fields or fields[0] in (b"Z", b"X"):
            return True
        return bool(int(fields[6]) & _PF_EXITING or int(fields[28]) & 1 << signal.SIGKILL - 1)

    def stopped(self) -> bool:
        """Whether it was stopped (SIGSTOP, a debugger), or hangs in the kernel."""
        fields = self._stat()
        return bool(fields) and fields[0] in (b"T", b"t", b"D")

    def leave(self, cpu: int) -> bool:
        """Have its first thread go on elsewhere if it is on that CPU, and may be on another. Whether it was.

        From then on it may be where it might be before: the kernel has moved it at once, if it was ready to run.
        """
        fields = self._stat()
        if not fields or int(fields[36]) != cpu:  # proc(5), stat: processor
            return False
        try:
            allowed = os.sched_getaffinity(self.pid)
            if not (others := allowed - {cpu}):
                return False
            try:
                os.sched_setaffinity(self.pid, others)
            finally:
                os.sched_setaffinity(self.pid, allowed)
            if (now := self._stat()) and now[17] != fields[17]:  # num_threads: a new one is where its maker may be
                for thread in os.listdir(f"/proc/{self.pid}/task"):
                    os.sched_setaffinity(int(thread), allowed)
        except OSError:  # it is gone, or another user's
            return False
        return True

    def _stat(self) -> list[bytes]:
        """Fields of ``/proc/<pid>/stat`` from the state on; none once it is gone."""
        try:
            with open(f"/proc/{self.pid}/stat", "rb") as file:
                return file.read().rpartition(b")")[2].split()
        except OSError:
            return []

    def runs(self) -> bool:
        """Whether it has not ended."""
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return not poll.poll(0)

    def kill(self) -> None:
        """SIGKILL, through the pidfd: never another process that got the same number."""
        with contextlib.suppress(OSError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def reap(self, timeout: float | None = None) -> int | None:
        """The exit status (negative: the signal); None if it runs after ``timeout`` s, or nobody could say."""
        if self.popen is None:
            return self.status if self.status is not None else _exit_info(self.pidfd)
        try:
            return self.popen.wait(timeout)
        except subprocess.TimeoutExpired:
            return None

    def close(self) -> None:
        """Give back the descriptors. The socket is its FrameSocket's."""
        for fd in (self.log_fd, self.pidfd):
            if fd >= 0:
                os.close(fd)
        self.log_fd = self.pidfd = -1


def _exit_info(pidfd: int) -> int | None:
    """How the process ended, from a kernel (Linux 6.15) that keeps it with the pidfd (PIDFD_GET_INFO).

    For workers whose zygote died before them: init reaps those, and we could not know else.
    """
    info = bytearray(_PIDFD_INFO_SIZE)
    info[:8] = _PIDFD_INFO_EXIT.to_bytes(8, sys.byteorder)
    for _ in range(20):  # until init has reaped it, usually at once
        try:
            fcntl.ioctl(pidfd, _PIDFD_GET_INFO, info)
        except OSError:
            return None
        if int.from_bytes(info[:8], sys.byteorder) & _PIDFD_INFO_EXIT:
            return os.waitstatus_to_exitcode(int.from_bytes(info[60:64], sys.byteorder))
        time.sleep(0.001)
    return None


def describe_exit(status: int | None) -> str:
    """``-9`` → ``killed by SIGKILL``; ``3`` → ``exited with status 3``."""
    if status is None:
        return "ended in a way that is not known, for its zygote had died before it"
    if status < 0:
        try:
            name = signal.Signals(-status).name
        except ValueError:
            name = f"signal {-status}"
        return f"killed by {name}"
    return f"exited with status {status}"


def _status(path: str) -> dict[str, str]:
    with open(path) as file:
        return {key: value.strip() for key, _, value in (line.partition(":") for line in file)}
