"""``start.*`` and ``recover.*``: how long until a worker is there; ``worker.memory``: what it takes."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from vortex_worker.bench import peers
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


_SETTLING = 4.0  # s: a fabric has started, and its zygote gathered its memory

#: A process as bare as a zygote may be: imports, huge pages, fork, a matmul in the child, which writes to some pages.
_BARE = """
import gc, os, time
from vortex_worker import zygote
gc.disable()
zygote._prepare()
pages = bytearray(b"x" * ({pages} << 12))
gc.collect()
for _ in zygote._settle(): pass
import torch
read, write = os.pipe()
for _ in range({count}):
    begun = time.perf_counter()
    if os.fork() == 0:
        square = torch.ones(128, 128)
        (square @ square).sum()
        for at in range(0, len(pages), 4096):
            pages[at] = 0
        os.write(write, b"x")
        os._exit(0)
    os.read(read, 1)
    print(time.perf_counter() - begun)
    os.wait()
"""


def _bare_forks(count: int, pages: int = 0) -> list[float]:
    """Seconds from fork to the first matmul of a child, sandboxed and connected in no way.

    Args:
        pages: how many of its parent's pages the child writes to besides, and so has copied.
    """
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
    done = subprocess.run(
        [sys.executable, "-c", _BARE.format(count=count, pages=pages)],
        capture_output=True,
        check=True,
        text=True,
        env=environment,
    )
    return [float(line) for line in done.stdout.split()]


def start_warm(quick: bool) -> Result:
    """From the request to fork a worker to its word that it takes jobs: sandboxed, registered, warmed up."""
    from vortex_worker._core.framing import FrameSocket
    from vortex_worker.ipc import control_pb2 as pb
    from vortex_worker.ipc import protocol
    from vortex_worker.supervisor.memory import Memory
    from vortex_worker.supervisor.process import Channels
    from vortex_worker.supervisor.zygote import Zygote

    count = 10 if quick else 50
    bare = _bare_forks(count)
    memory, zygote, encoder = Memory(2 << 20, 8 << 20, 1), Zygote(diffusion=False), protocol.Encoder()
    samples: list[float] = []
    faults: list[float] = []
    lease = memory.hold_lease()
    ack = pb.HandshakeAck(
        accepted=True, slot=0, lease_offset=lease.offset, lease_size=lease.size, heartbeat_ms=100
    )  # fmt: skip
    config = WorkerConfig(socket="", shm_fd=0, threads=1, log_level="error")

    def messages(word: str) -> dict[str, object]:
        while True:
            select.select([zygote.fileno()], [], [])
            for message in zygote.receive():
                if message.pidfd >= 0:
                    os.close(message.pidfd)
                if word in message.body:
                    return message.body

    try:
        messages("settled")
        for number in range(count + 2):
            channels = Channels()
            begun = time.perf_counter()
            zygote.fork(number, config, channels.its_socket.fileno(), memory.arena.fd, channels.its_log)
            socket = FrameSocket(channels.socket.detach())
            for step in ("joining", "locked", "ready"):
                body = socket.recv(timeout=30)
                assert body is not None, f"the worker ended instead of {step}"
                if step == "joining":
                    socket.send(encoder.encode(handshake_ack=ack))
            samples.append(time.perf_counter() - begun)
            assert body is not None
            faults.append(_faults(protocol.decode(body).handshake.pid))
            channels.close_its()
            socket.close()
            os.close(channels.log)
            messages("ended")
    finally:
        zygote.kill()
        zygote.close()
        memory.close()
    samples = samples[2:]  # the first compiles the policy
    pages = round(median(faults))
    return Result(
        "request to fork → a worker takes jobs", "ms", median(samples) * 1e3, p99(samples) * 1e3,
        "bare fork of the same zygote, and a matmul", median(bare) * 1e3, Target("median", 100.0, 5.0),
        {
            f"the bare fork, and as many pages written to as this worker touches, {pages}": (
                median(_bare_forks(count, pages)) * 1e3
            ),
            "multiprocessing, forkserver with torch loaded": median(peers.forkserver(count)) * 1e3,
            "multiprocessing, spawn": median(peers.spawn(2 if quick else 5)) * 1e3,
        },
    )  # fmt: skip


def _faults(pid: int) -> int:
    """How many pages a process has touched for the first time (proc(5), stat: minflt)."""
    with open(f"/proc/{pid}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[7])


def start_fabric(quick: bool) -> Result:
    """From ``Fabric()`` to the result of a first job, in a program that has not imported torch."""
    samples, imports = [], []
    for _ in range(3 if quick else 10):  # turn by turn: a noisy machine hits both
        samples.append(_print_of(_FIRST_RESULT))
        imports.append(_print_of(_IMPORT))
    return Result(
        "Fabric() → result of a first job", "ms", median(samples) * 1e3, p99(samples) * 1e3,
        "import torch, once", median(imports) * 1e3, Target("ratio", 1.0, 1.0),
    )  # fmt: skip


_IMPORT = "import time; begun = time.perf_counter(); import torch; print(time.perf_counter() - begun)"
_FIRST_RESULT = """
import time
from typing import Any
import vortex_worker as vw
begun = time.perf_counter()
with vw.Fabric(1) as fabric:
    result = fabric.run("Identity", {"tensor": 7})
    ended = time.perf_counter()
assert result == {"tensor": 7}
print(ended - begun)
"""


def _print_of(program: str) -> float:
    """The number that a fresh Python prints when it runs ``program``."""
    return float(subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, check=True).stdout)


def recover_ready(quick: bool) -> Result:
    """From SIGKILL of the only worker to another, forked for it, that takes jobs. No standby."""
    from vortex_worker.supervisor.fabric import Fabric

    count = 5 if quick else 30
    samples, bare = [], _bare_forks(count)
    with Fabric(1, standby=0) as fabric:
        fabric.wait_ready(120)
        time.sleep(_SETTLING)
        for _ in range(count):
            (worker,) = fabric.workers()
            begun = time.perf_counter()
            os.kill(worker["pid"], signal.SIGKILL)
            while not (now := fabric.workers()) or now[0]["pid"] == worker["pid"]:
                time.sleep(0.0001)
            fabric.wait_ready(120)
            samples.append(time.perf_counter() - begun)
            assert fabric.run("Identity", {"tensor": 7}) == {"tensor": 7}
    return Result(
        "SIGKILL → a worker ready", "ms", median(samples) * 1e3, p99(samples) * 1e3,
        "bare fork of the same zygote, and a matmul", median(bare) * 1e3, Target("median", 100.0, 5.0),
    )  # fmt: skip


def recover_reply(quick: bool) -> Result:
    """From SIGKILL of a worker in the middle of a job to the job's right result, from the standby."""
    import torch

    from vortex_worker.supervisor.fabric import Fabric

    samples, plain = [], []
    with Fabric(1, custom_nodes=Path(__file__).parent / "nodes") as fabric:
        time.sleep(_SETTLING)
        for number in range(10 if quick else 50):
            fabric.wait_ready(120)
            gate = fabric.tensor(torch.tensor([0, number]))
            job = fabric.submit("BenchGate", {"gate": gate}, retries=1)
            while not job.progress.total:
                time.sleep(0.0005)
            (worker,) = fabric.workers()
            gate[0] = 1  # the job would go on now, but
            begun = time.perf_counter()
            os.kill(worker["pid"], signal.SIGKILL)
            result = job.result(60)
            ended = time.perf_counter()
            assert result == {"number": number}
            if job.attempts == 2:  # else it was quicker than the signal
                samples.append(ended - begun)
            begun = time.perf_counter()
            fabric.run("BenchGate", {"gate": gate})
            plain.append(time.perf_counter() - begun)
    return Result(
        "SIGKILL in a job → its result, from the standby", "ms", median(samples) * 1e3, p99(samples) * 1e3,
        "the same job, undisturbed", median(plain) * 1e3, Target("median", 10.0, 0.5),
    )  # fmt: skip


def worker_memory(quick: bool) -> Result:
    """Memory that one more worker takes: what the whole fabric's proportional set size grows by."""
    from vortex_worker.supervisor.fabric import Fabric

    probe = "import torch; torch.ones(1 << 16).add_(1); print(open('/proc/self/smaps_rollup').read())"
    bare = subprocess.run([sys.executable, "-c", probe], capture_output=True, check=True, text=True).stdout
    with Fabric(2, standby=0, threads=1) as fabric:
        few = _memory_of(fabric)
        fabric.scale(4)
        more = _memory_of(fabric)
    with Fabric(4, standby=0, threads=1) as fabric:
        at_once = _memory_of(fabric)
    each = (more - few) / 2
    return Result(
        "memory of one more worker: growth of the sum of PSS", "MiB", each, each,
        "a bare Python that has imported torch", _pss(bare), Target("median", 60.0, 20.0),
        {"of one more among those that a fabric starts with": (at_once - few) / 2},
    )  # fmt: skip


def _memory_of(fabric: Any) -> float:
    """The proportional set sizes of its workers and their zygote, MiB."""
    fabric.wait_ready(120)
    time.sleep(_SETTLING)
    for _ in fabric.workers():
        fabric.run("Identity", {"tensor": 1})
    pids = [worker["pid"] for worker in fabric.workers()]
    with open(f"/proc/{pids[0]}/stat") as file:
        pids.append(int(file.read().rpartition(")")[2].split()[1]))  # their parent, the zygote
    total = 0.0
    for pid in pids:
        with open(f"/proc/{pid}/smaps_rollup") as file:  # needs root: a worker is not dumpable
            total += _pss(file.read())
    return total


def _pss(rollup: str) -> float:
    line = next(line for line in rollup.splitlines() if line.startswith("Pss:"))
    return int(line.split()[1]) / 1024
