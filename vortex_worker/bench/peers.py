"""What starting a process costs otherwise: ``multiprocessing``, from request to the first product of two matrices.

``python -m vortex_worker.bench.peers METHOD COUNT`` prints the seconds of each start, one a line. A program of its
own, since a fork server, once started, stays.
"""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import time
from multiprocessing.connection import Connection


def forkserver(count: int) -> list[float]:
    """Seconds of starts from a fork server that has imported torch."""
    return _measure("forkserver", count)


def spawn(count: int) -> list[float]:
    """Seconds of starts from nothing, which import torch."""
    return _measure("spawn", count)


def _measure(method: str, count: int) -> list[float]:
    done = subprocess.run(
        [sys.executable, "-m", "vortex_worker.bench.peers", method, str(count)],
        capture_output=True, check=True, text=True,
    )  # fmt: skip
    return [float(line) for line in done.stdout.split()]


def _multiply(answer: Connection) -> None:
    import torch

    torch.set_num_threads(1)
    square = torch.ones(128, 128)
    answer.send(float((square @ square).sum()))


def _main(method: str, count: int) -> None:
    multiprocessing.set_start_method(method)
    if method == "forkserver":
        multiprocessing.set_forkserver_preload(["torch", "vortex_worker.bench.peers"])
        count += 1  # the first starts the server
    for number in range(count):
        ours, theirs = multiprocessing.Pipe(duplex=False)
        begun = time.perf_counter()
        process = multiprocessing.Process(target=_multiply, args=(theirs,))
        process.start()
        assert ours.recv() == 128.0**3
        ended = time.perf_counter()
        process.join()
        if method != "forkserver" or number:
            print(ended - begun)


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]))
