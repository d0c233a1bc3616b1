"""The supervisor's side of a zygote: the process, and the messages to and from it.

Called by the fabric's thread only. What the messages are stands in ``vortex_worker.zygote``. Imports little before
the process runs: it is what a fabric waits for.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from vortex_worker.defaults import ZYGOTE_MESSAGE
from vortex_worker.supervisor.environment import environment

if TYPE_CHECKING:
    from vortex_worker.config import WorkerConfig
    from vortex_worker.sandbox.stages import Programs

_MOST = 1 << 16
_PROGRAM = "from vortex_worker import zygote; zygote.run()"  # as -m would, without what Python imports for that
# What keeps libraries from starting threads when they are imported.
_ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",  # NumPy's BLAS; torch has its own
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
    "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",  # packages that say they extend torch; nobody has asked for them
}


class Message(NamedTuple):
    """One message of the zygote, with the pidfd that came beside it (-1: none)."""

    body: dict[str, Any]
    pidfd: int


class Zygote:
    """A running zygote."""

    def __init__(self, *, diffusion: bool) -> None:
        """Start it. It imports for a second or two; requests wait in the socket meanwhile.

        Args:
            diffusion: whether to import diffusers and transformers too, where they are installed: some seconds more.

        Raises:
            LaunchError: the process could not be started.
        """
        from vortex_worker.errors import LaunchError

        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            log_read, log_write = os.pipe2(os.O_CLOEXEC)
        except OSError as error:
            raise LaunchError(f"the zygote's channels could not be opened: {error}") from error
        try:
            self.popen = subprocess.Popen(
                [sys.executable, "-P", "-c", _PROGRAM],
                stdin=subprocess.DEVNULL,
                stdout=log_write,
                stderr=log_write,
                pass_fds=(theirs.fileno(),),
                env=environment()
                | _ENVIRONMENT
                | {"VORTEX_ZYGOTE_FD": str(theirs.fileno()), "VORTEX_ZYGOTE_DIFFUSION": "1" * diffusion},
                start_new_session=True,
            )
        except OSError as error:
            ours.close()
            os.close(log_read)
            raise LaunchError(f"the zygote could not be started: {error}") from error
        finally:
            theirs.close()
            os.close(log_write)
        self.pid = self.popen.pid
        self.pidfd = os.pidfd_open(self.pid)
        self.log_fd = log_read
        self.ready = False
        self.forked = False  # once, at least
        self.alive = True
        self._socket = ours
        ours.setblocking(False)
        os.set_blocking(log_read, False)

    def fileno(self) -> int:
        return self._socket.fileno()

    def fork(self, number: int, config: WorkerConfig, control: int, arena: int, log: int) -> bool:
        """Ask for a worker, answered by ``forked`` or ``failed``. False: it takes no requests now."""
        return self._send({"fork": number, "config": config.to_env()}, [control, arena, log])

    def give_programs(self, config: WorkerConfig, programs: Programs) -> None:
        """Spare it the compilation of filters. If it has no room for them, it compiles them itself."""
        self._send({"programs": programs.pack(), "config": config.to_env()}, [])

    def guard(self, pidfd: int) -> bool:
        """Have it end a worker that isn't its own, too, when this process has died. False: it takes no requests now."""
        return self._send({"ward": True}, [pidfd])

    def _send(self, body: dict[str, Any], fds: list[int]) -> bool:
        import json

        message = json.dumps(body).encode()
        if len(message) > ZYGOTE_MESSAGE:
            return False
        try:
            socket.send_fds(self._socket, [message], fds)
        except OSError:
            return False
        return True

    def receive(self) -> list[Message]:
        """Whatever messages have come."""
        import json

        messages = []
        with contextlib.suppress(BlockingIOError, ConnectionError):
            while True:
                data, fds, _, _ = socket.recv_fds(self._socket, _MOST, 1)
                if not data:
                    break
                messages.append(Message(json.loads(data), fds[0] if fds else -1))
        return messages

    def said(self) -> str:
        """What it wrote to its log, the last 16 KiB of what the pipe holds."""
        with contextlib.suppress(BlockingIOError):
            return os.read(self.log_fd, 1 << 20)[-16_384:].decode(errors="replace").strip()
        return ""

    def kill(self) -> None:
        with contextlib.suppress(OSError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def close(self) -> int:
        """Wait for its end and give everything back. Returns its exit status."""
        self.alive = False
        self._socket.close()
        status = self.popen.wait()
        os.close(self.pidfd)
        os.close(self.log_fd)
        return status
