"""A worker's link whose other end the test holds: real socket, log, arena and lease; only the process is our own."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vortex_worker.config import WorkerConfig
from vortex_worker.supervisor.link import WorkerLink
from vortex_worker.supervisor.memory import Memory
from vortex_worker.supervisor.process import Channels, WorkerProcess


class Peer:
    """What a hostile worker has."""

    def __init__(self, memory: Memory, **settings: Any) -> None:
        self.channels = Channels()
        process = WorkerProcess(os.getpid(), os.pidfd_open(os.getpid()), self.channels)
        self.lease = memory.hold_lease()
        self.memory = memory
        self.link = WorkerLink(
            3, WorkerConfig(socket="", worker_id="w3.1", **settings), process, memory.arena, self.lease
        )
        self.socket: socket.socket = self.channels.its_socket
        self.log: int = self.channels.its_log

    def close(self) -> None:
        self.channels.close_its()
        self.link.close()
        self.memory.give_back(self.lease)


@contextmanager
def peer(**settings: Any) -> Iterator[Peer]:
    memory = Memory(4 << 20, 2 << 20, 3)
    other = Peer(memory, **settings)
    try:
        yield other
    finally:
        other.close()
        memory.close()
