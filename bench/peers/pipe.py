"""The standard library: a process and a pipe, and bytes through it."""

from __future__ import annotations

from typing import Any

from peers import Peer, as_bytes, forkserver, from_bytes, warm_up


def serve(pipe: Any) -> None:
    warm_up()
    while True:
        try:
            tensor = from_bytes(pipe.recv_bytes())
        except EOFError:
            return
        pipe.send_bytes(as_bytes(tensor))


class Subject(Peer):
    title = "multiprocessing.Pipe"
    docs = "https://docs.python.org/3/library/multiprocessing.html#multiprocessing.connection.Connection.send_bytes"
    use = "forkserver with torch preloaded; send_bytes of the tensor's memory, result over the bytes received"
    deaths = (EOFError, OSError)

    def setup(self, workers: int) -> None:
        self._context = forkserver(__name__)
        self._workers = [self._start() for _ in range(workers)]

    def _start(self) -> tuple[Any, Any]:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=serve, args=(theirs,), daemon=True)
        process.start()
        theirs.close()  # so that the end of the worker is the end of the pipe
        return process, ours

    def call(self, tensor: Any, worker: int = 0) -> Any:
        pipe = self._workers[worker][1]
        pipe.send_bytes(as_bytes(tensor))
        return from_bytes(pipe.recv_bytes())

    def pid(self) -> int:
        pid: int = self._workers[0][0].pid
        return pid

    def restart(self) -> None:
        process, pipe = self._workers[0]
        pipe.close()
        process.join()
        self._workers[0] = self._start()

    def close(self) -> None:
        for process, pipe in self._workers:
            pipe.close()
            process.join()
