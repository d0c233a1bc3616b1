"""ZeroMQ: request and reply over a Unix socket, messages not copied where that pays."""

from __future__ import annotations

import tempfile
from typing import Any

from peers import Peer, as_bytes, forkserver, from_bytes, warm_up


def serve(address: str) -> None:
    import zmq

    warm_up()
    socket = zmq.Context().socket(zmq.REP)
    socket.bind(address)
    while True:
        socket.send(as_bytes(from_bytes(socket.recv(copy=False).buffer)), copy=False)


class WorkerDied(Exception):
    pass


class Subject(Peer):
    title = "pyzmq"
    requires = ("pyzmq==27.3.0",)
    distribution = "pyzmq"
    docs = "https://pyzmq.readthedocs.io/en/latest/howto/serialization.html#example-numpy-arrays"
    use = (
        "REQ and REP over ipc://, copy=False (which pyzmq ignores for small messages); a death is seen by polling the "
        "process beside the socket, and the socket replaced, as the guide's Lazy Pirate does"
    )
    deaths = (WorkerDied,)

    def setup(self, workers: int) -> None:
        import zmq

        self._zmq = zmq
        self._folder = tempfile.TemporaryDirectory(prefix="bench-zmq-")
        self._count = 0
        self._zmq_context = zmq.Context()
        self._context = forkserver(__name__)
        self._workers = [self._start() for _ in range(workers)]

    def _start(self) -> tuple[Any, Any, Any]:
        zmq, self._count = self._zmq, self._count + 1
        address = f"ipc://{self._folder.name}/{self._count}"
        process = self._context.Process(target=serve, args=(address,), daemon=True)
        process.start()
        socket = self._zmq_context.socket(zmq.REQ)
        socket.linger = 0
        socket.reconnect_ivl = 1  # ms; it may look before the worker listens
        socket.connect(address)
        poller = zmq.Poller()
        poller.register(socket, zmq.POLLIN)
        poller.register(process.sentinel, zmq.POLLIN)
        return process, socket, poller

    def call(self, tensor: Any, worker: int = 0) -> Any:
        process, socket, poller = self._workers[worker]
        socket.send(as_bytes(tensor), copy=False)
        ready = dict(poller.poll())
        if socket not in ready:
            raise WorkerDied(f"exit status {process.exitcode}")
        return from_bytes(socket.recv(copy=False).buffer)

    def pid(self) -> int:
        pid: int = self._workers[0][0].pid
        return pid

    def restart(self) -> None:
        process, socket, _ = self._workers[0]
        socket.close()
        process.join()
        self._workers[0] = self._start()

    def close(self) -> None:
        for process, socket, _ in self._workers:
            socket.close()
            process.kill()
            process.join()
        self._zmq_context.term()
        self._folder.cleanup()
