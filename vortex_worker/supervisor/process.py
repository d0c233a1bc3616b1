"""One worker process: launched, checked from outside, ended. Knows nothing of jobs."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from typing import NamedTuple

from vortex_worker.config import WorkerConfig
from vortex_worker.errors import LaunchError

#: What of the supervisor's environment a worker may see: where libraries are, how many threads
#: to use, which devices. Never its secrets.
_ENV_NAMES = frozenset({"PATH", "LANG", "TZ", "LD_LIBRARY_PATH", "VIRTUAL_ENV"})
_ENV_PREFIXES = (
    "ASAN_", "ATEN_", "CUDA_", "GOMP_", "KMP_", "LC_", "LSAN_", "MKL_", "NVIDIA_", "OMP_", "ONEDNN_",
    "OPENBLAS_", "PYTHON", "TORCH_", "UBSAN_",
)  # fmt: skip
_SEND_BUFFER = 1 << 20  # bytes: a submit of ordinary size never waits for the worker to read


class Verdict(NamedTuple):
    """What ``/proc`` says of a worker's sandbox: the kernel's word, not the worker's."""

    seccomp: int  # 2: filter mode, in every thread
    filters: int  # installed filters, the fewest of any thread
    no_new_privs: bool
    capabilities: int  # effective capabilities, as a bit set

    @property
    def holds(self) -> bool:
        """Both filters and the rest are in force."""
        return self.seccomp == 2 and self.filters >= 2 and self.no_new_privs and self.capabilities == 0


class WorkerProcess:
    """A launched worker and the supervisor's ends of its socket and its log."""

    def __init__(self, config: WorkerConfig, arena_fd: int) -> None:
        """Start ``python -m vortex_worker.main`` on a socket pair of its own.

        Raises:
            LaunchError: the process could not be started.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        log_read, log_write = os.pipe2(os.O_CLOEXEC)
        try:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
            config = replace(config, socket=f"fd:{theirs.fileno()}", shm_fd=arena_fd)
            self.popen = subprocess.Popen(
                # -P: what lies in the working directory is not importable
                [sys.executable, "-P", "-m", "vortex_worker.main"],
                stdin=subprocess.DEVNULL,
                stdout=log_write,
                stderr=log_write,
                pass_fds=(theirs.fileno(), arena_fd),
                env=_environment() | config.to_env(),
                start_new_session=True,  # the terminal's Ctrl-C is for the supervisor alone
            )
        except OSError as error:
            ours.close()
            os.close(log_read)
            raise LaunchError(f"worker {config.worker_id} could not be started: {error}") from error
        finally:
            theirs.close()
            os.close(log_write)
        self.pid = self.popen.pid
        self.socket_fd = ours.detach()  # owned by the FrameSocket made over it
        self.log_fd = log_read
        self.pidfd = os.pidfd_open(self.pid)
        os.set_blocking(self.log_fd, False)

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

    def kill(self) -> None:
        """SIGKILL, through the pidfd: never another process that got the same number."""
        with contextlib.suppress(OSError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def reap(self, timeout: float | None = None) -> int | None:
        """The exit status (negative: the signal), or None if it still runs after ``timeout`` s."""
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


def describe_exit(status: int) -> str:
    """``-9`` → ``killed by SIGKILL``; ``3`` → ``exited with status 3``."""
    if status < 0:
        try:
            name = signal.Signals(-status).name
        except ValueError:
            name = f"signal {-status}"
        return f"killed by {name}"
    return f"exited with status {status}"


def _environment() -> dict[str, str]:
    env = {k: v for k, v in os.environ.items() if k in _ENV_NAMES or k.startswith(_ENV_PREFIXES)}
    env["PYTHONDONTWRITEBYTECODE"] = "1"
    return env


def _status(path: str) -> dict[str, str]:
    with open(path) as file:
        return {key: value.strip() for key, _, value in (line.partition(":") for line in file)}
