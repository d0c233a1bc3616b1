"""What two plain processes pay: Python at both ends of a socket, without a queue, a check, a retry or a sandbox.

``python -m vortex_worker.bench.bare FD…`` answers on each of the sockets that it has inherited: a float64, so many
microseconds, is answered by a float64 after as long, which is how long it took. A program of its own, since one that
has threads can't be forked.
"""

from __future__ import annotations

import selectors
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from vortex_worker.bench.measure import busy

_NUMBER = struct.Struct("d")


@contextmanager
def answering(count: int) -> Iterator[list[socket.socket]]:
    """As many sockets, at whose other ends one process answers."""
    pairs = [socket.socketpair() for _ in range(count)]
    theirs = [other.fileno() for _, other in pairs]
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "vortex_worker.bench.bare", *map(str, theirs)], pass_fds=theirs
        )  # fmt: skip
    finally:
        for _, other in pairs:
            other.close()
    try:
        yield [ours for ours, _ in pairs]
    finally:
        for ours, _ in pairs:
            ours.close()
        process.wait(10)


def ask(peer: socket.socket, us: float) -> float:
    """Have the other process take ``us`` microseconds. Returns how long it took, s, by its own clock."""
    peer.send(_NUMBER.pack(us))
    (took,) = _NUMBER.unpack(peer.recv(_NUMBER.size))
    return float(took)


def _serve(descriptors: list[int]) -> None:
    with selectors.DefaultSelector() as selector:
        for descriptor in descriptors:
            selector.register(socket.socket(fileno=descriptor), selectors.EVENT_READ)
        while selector.get_map():
            for key, _ in selector.select():
                peer = key.fileobj
                assert isinstance(peer, socket.socket)
                if asked := peer.recv(_NUMBER.size):
                    peer.send(_NUMBER.pack(busy(*_NUMBER.unpack(asked))))
                else:
                    selector.unregister(peer)
                    peer.close()


if __name__ == "__main__":
    _serve(list(map(int, sys.argv[1:])))
