"""``start.*`` and ``recover.*``: how long until a worker is there; ``worker.memory``: what it takes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from vortex_worker.bench.measure import Result, Target, median, p99
from vortex_worker.config import WorkerConfig


def start_cold(quick: bool) -> Result:
    """From exec of a worker to its handshake: sandboxed for start-up, mapped, connected. torch comes after."""
    from vortex_worker._core.framing import FrameSocket
    from vortex_worker.ipc import protocol
    from vortex_worker.supervisor.memory import Memory
    from vortex_worker.supervisor.process import WorkerProcess

    memory = Memory(2 << 20, 2 << 20, 1)
    samples, bare = [], []
    for _ in range(5 if quick else 20):
        begun = time.perf_counter()
        process = WorkerProcess.execute(WorkerConfig(socket="", shm_fd=0), memory.arena.fd)
        socket = FrameSocket(process.socket_fd)
        try:
            body = socket.recv(timeout=30)
            samples.append(time.perf_counter() - begun)
            assert body is not None
            assert protocol.decode(body).handshake.pid == process.pid
        finally:
            process.kill()
            process.reap()
            socket.close()
            process.close()
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-c", ""], check=True)
        bare.append(time.perf_counter() - begun)
    memory.close()
    return Result(
        "exec → handshake of a worker", "ms", median(samples) * 1e3, p99(samples) * 1e3,
        "Python starts and ends", median(bare) * 1e3, Target("median", 100.0, 60.0),
    )  # fmt: skip


def recover_ready(quick: bool) -> Result:
    """From SIGKILL of the only worker to another that has done a job."""
    from vortex_worker.supervisor.fabric import Fabric

    samples, imports = [], []
    with Fabric(1) as fabric:
        fabric.wait_ready(120)
        for _ in range(3 if quick else 7):
            (worker,) = fabric.workers()
            begun = time.perf_counter()
            os.kill(worker["pid"], signal.SIGKILL)
            while not (now := fabric.workers()) or now[0]["pid"] == worker["pid"]:
                time.sleep(0.0005)
            fabric.wait_ready(120)
            samples.append(time.perf_counter() - begun)
            assert fabric.run("Identity", {"tensor": 7}) == {"tensor": 7}
            begun = time.perf_counter()
            subprocess.run([sys.executable, "-c", "import torch"], check=True)
            imports.append(time.perf_counter() - begun)
    return Result(
        "SIGKILL → a worker ready", "ms", median(samples) * 1e3, p99(samples) * 1e3,
        "Python starts, imports torch and ends", median(imports) * 1e3, Target("median", 100.0, 5.0),
    )  # fmt: skip


def worker_memory(quick: bool) -> Result:
    """Memory that one more worker takes: its proportional set size, as the kernel counts it."""
    from vortex_worker.supervisor.fabric import Fabric

    probe = "import torch; torch.ones(1 << 16).add_(1); print(open('/proc/self/smaps_rollup').read())"
    bare = subprocess.run([sys.executable, "-c", probe], capture_output=True, check=True, text=True).stdout
    with Fabric(2) as fabric:
        fabric.wait_ready(120)
        sizes = []
        for worker in fabric.workers():
            with open(f"/proc/{worker['pid']}/smaps_rollup") as file:  # needs root: a worker is not dumpable
                sizes.append(_pss(file.read()))
    return Result(
        "memory (PSS) of one of two workers", "MiB", max(sizes), max(sizes),
        "a bare Python that has imported torch", _pss(bare), Target("median", 60.0, 20.0),
    )  # fmt: skip


def _pss(rollup: str) -> float:
    line = next(line for line in rollup.splitlines() if line.startswith("Pss:"))
    return int(line.split()[1]) / 1024
