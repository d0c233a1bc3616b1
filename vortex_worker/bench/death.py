"""``recover.detect``: how soon a death is seen, by its early sign and by the pidfd, as memory grows."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
import time

from vortex_worker._core import deathwatch
from vortex_worker._core.arena import Arena
from vortex_worker._core.slots import Slot
from vortex_worker.bench.measure import Result, Target, median, p99

_SIZES = (0, 64, 512)  # MiB of private memory

#: What dies: a process that holds its slot's lock as a worker does, and memory in pages of 4 KiB.
_PROGRAM = """
import mmap, os, sys
from vortex_worker._core.arena import Arena
from vortex_worker._core.heartbeat import Heartbeat
from vortex_worker._core.slots import Slot
arena, size = int(sys.argv[1]), int(sys.argv[2]) << 20
slot = Slot(Arena.attach(arena, os.open(f"/proc/self/fd/{arena}", os.O_RDONLY)), 0)
if size:
    kept = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    kept.madvise(mmap.MADV_NOHUGEPAGE)
    for at in range(0, size, 4096):
        kept[at] = 1
heartbeat = Heartbeat(slot, 0, 100)
heartbeat.start()
print("x", flush=True)
sys.stdin.read()
"""


def recover_detect(quick: bool) -> Result:
    """From SIGKILL of a process of 512 MiB to its early sign; beside it the pidfd, and smaller processes."""
    arena = Arena.create(4 << 20)
    slot = Slot(arena, 0)
    early: dict[int, list[float]] = {size: [] for size in _SIZES}
    late: dict[int, list[float]] = {size: [] for size in _SIZES}
    try:
        for _ in range(3 if quick else 15):
            for size in _SIZES:
                first, last = _one_death(arena, slot, size)
                early[size].append(first)
                late[size].append(last)
    finally:
        arena.close()
    beside = {f"early sign, {size} MiB": median(early[size]) * 1e3 for size in _SIZES[:-1]}
    beside |= {f"pidfd, {size} MiB": median(late[size]) * 1e3 for size in _SIZES[:-1]}
    largest = _SIZES[-1]
    return Result(
        f"SIGKILL → its early sign, with {largest} MiB", "ms", median(early[largest]) * 1e3, p99(early[largest]) * 1e3,
        f"SIGKILL → its pidfd, with {largest} MiB", median(late[largest]) * 1e3, Target("median", 100.0, 0.12),
        beside,
    )  # fmt: skip


def _one_death(arena: Arena, slot: Slot, size: int) -> tuple[float, float]:
    """Seconds from SIGKILL to the early sign, and to the pidfd's word."""
    slot.clear()
    bell, seen = deathwatch.Bell(), []
    with subprocess.Popen(
        [sys.executable, "-P", "-c", _PROGRAM, str(arena.fd), str(size)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[arena.fd],
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.read(1) == b"x"
        deadline = time.monotonic() + 10.0  # its heartbeat thread takes the lock when it first runs
        while not (word := deathwatch.word(slot)):
            assert time.monotonic() < deadline, "the process never took its lock"
            time.sleep(0.001)

        def watch() -> None:
            bell.wait(bell.rung, [(slot, word)])
            seen.append(time.perf_counter())

        watcher = threading.Thread(target=watch)
        watcher.start()
        time.sleep(0.005)  # until it waits
        pidfd = os.pidfd_open(process.pid)
        begun = time.perf_counter()
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        select.select([pidfd], [], [])
        ended = time.perf_counter()
        watcher.join()
        os.close(pidfd)
    assert deathwatch.word(slot) & 0x4000_0000, "the sign was not the kernel's"  # FUTEX_OWNER_DIED
    return seen[0] - begun, ended - begun
