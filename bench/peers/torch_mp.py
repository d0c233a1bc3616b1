"""torch.multiprocessing: tensors through a pipe by reference, their memory shared."""

from __future__ import annotations

from typing import Any

from peers import Peer, forkserver, warm_up


def serve(pipe: Any) -> None:
    import torch.multiprocessing  # noqa: F401 - registers how tensors are pickled

    warm_up()
    while True:
        try:
            pipe.send(pipe.recv())
        except EOFError:
            return


class Subject(Peer):
    title = "torch.multiprocessing"
    docs = "https://docs.pytorch.org/docs/stable/multiprocessing.html#sharing-cpu-tensors"
    use = (
        "forkserver with torch preloaded; tensors through a Pipe, strategy file_descriptor; those held are "
        "share_memory_(), others are moved to shared memory when they are sent"
    )
    deaths = (EOFError, OSError)

    def setup(self, workers: int) -> None:
        import torch.multiprocessing  # noqa: F401 - as above

        self._context = forkserver(__name__)
        self._workers = [self._start() for _ in range(workers)]

    def _start(self) -> tuple[Any, Any]:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=serve, args=(theirs,), daemon=True)
        process.start()
        theirs.close()
        return process, ours

    def hold(self, tensor: Any) -> Any:
        return tensor.clone().share_memory_()

    def call(self, tensor: Any, worker: int = 0) -> Any:
        pipe = self._workers[worker][1]
        pipe.send(tensor)
        return pipe.recv()

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
