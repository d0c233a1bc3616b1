"""The heartbeat beats while Python can't run, stops with the process, and ends it when it is alone."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vortex_worker._core import slots
from vortex_worker._core.arena import Arena
from vortex_worker._core.heartbeat import Heartbeat
from vortex_worker._core.slots import Slot, monotonic_ns

MS = 1_000_000
INTERVAL = 25  # ms: with 4 of them allowed, a busy machine has room

WORKER = """
import ctypes, os, sys, threading, time
from vortex_worker._core.arena import Arena
from vortex_worker._core.heartbeat import Heartbeat
from vortex_worker._core.slots import Slot
fd, control, interval = map(int, sys.argv[1:4])
slot = Slot(Arena.attach(fd, os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)), 5)
slot.register(os.getpid())
heartbeat = Heartbeat(slot, control, interval)
heartbeat.start()
holding_gil = ctypes.PyDLL(None)  # its functions run without giving up the GIL
slot.begin(1)
"""


@pytest.fixture
def arena():
    arena = Arena.create(4 << 20)
    yield arena
    arena.close()


@pytest.fixture
def worker(arena):
    """Starts a worker that runs WORKER and then more: ``(slot, process, our end of its socket)``."""
    with contextlib.ExitStack() as stack:

        def start(more: str):
            ours, theirs = socket.socketpair()
            stack.enter_context(ours)
            with theirs:
                process = subprocess.Popen(
                    [sys.executable, "-c", WORKER + more, str(arena.fd), str(theirs.fileno()), str(INTERVAL)],
                    pass_fds=[arena.fd, theirs.fileno()],
                )
            stack.callback(process.wait)
            stack.callback(process.kill)
            slot = Slot(arena, 5)
            deadline = time.monotonic() + 60
            while slot.status != slots.BUSY:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.002)
            return slot, process, ours

        yield start


def test_beats_while_a_c_call_holds_the_gil(worker):
    slot, process, _ = worker("holding_gil.usleep(2_000_000); slot.end(); time.sleep(60)")
    beats, longest = [slot.heartbeat], 0
    while slot.status == slots.BUSY:
        now = monotonic_ns()
        beat = slot.heartbeat
        if beat != beats[-1]:
            beats.append(beat)
        longest = max(longest, now - beat)
        assert process.poll() is None
        time.sleep(0.001)
    assert beats[-1] - beats[0] > 1800 * MS
    assert len(beats) > 30  # 80 on a quiet machine
    assert longest < 4 * INTERVAL * MS
    assert slot.activity == 1  # alive, but getting nowhere: that shows too


def test_a_stopped_process_stops_beating(worker):
    slot, process, _ = worker("time.sleep(60)")
    process.send_signal(signal.SIGSTOP)
    os.waitpid(process.pid, os.WUNTRACED)
    beat = slot.heartbeat
    time.sleep(8 * INTERVAL / 1000)
    assert slot.heartbeat == beat
    process.send_signal(signal.SIGCONT)
    deadline = time.monotonic() + 10
    while slot.heartbeat == beat:
        assert time.monotonic() < deadline
        time.sleep(0.001)


STUCK = {
    "holding the GIL": "holding_gil.sleep(60)",
    "in a loop": "while True: pass",
    "asleep": "time.sleep(60)",
    "with SIGTERM blocked": "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 64)); time.sleep(60)",
    "in another thread": "threading.Thread(target=time.sleep, args=[60]).start(); time.sleep(60)",
}


@pytest.mark.parametrize("how", STUCK)
def test_exits_when_the_supervisor_hangs_up(worker, how):
    _, process, ours = worker(STUCK[how])
    ours.sendall(b"a job it will never read")
    time.sleep(2 * INTERVAL / 1000)
    assert process.poll() is None
    start = time.monotonic()
    ours.close()
    assert process.wait(30) == 0
    assert time.monotonic() - start < 5


def test_exits_when_the_supervisor_only_stops_sending(worker):
    _, process, ours = worker(STUCK["asleep"])
    ours.shutdown(socket.SHUT_WR)
    assert process.wait(30) == 0


def test_exits_when_a_node_closes_the_socket(worker):
    _, process, _ours = worker("os.close(control); time.sleep(60)")
    assert process.wait(30) == 0


class TestThread:
    def test_start_and_stop(self, arena):
        heartbeat = Heartbeat(Slot(arena, 0), -1, 10)
        assert not heartbeat.running
        heartbeat.stop()
        heartbeat.start()
        assert heartbeat.running
        with pytest.raises(RuntimeError, match="already"):
            heartbeat.start()
        first = heartbeat.slot.heartbeat
        deadline = time.monotonic() + 10
        while heartbeat.slot.heartbeat == first:
            assert time.monotonic() < deadline
        heartbeat.stop()
        heartbeat.stop()
        assert not heartbeat.running
        last = heartbeat.slot.heartbeat
        time.sleep(0.05)
        assert heartbeat.slot.heartbeat == last
        heartbeat.start()  # again
        heartbeat.stop()

    def test_stopping_does_not_wait_for_the_next_beat(self, arena):
        heartbeat = Heartbeat(Slot(arena, 0), -1, 3_600_000)
        start = time.monotonic()
        heartbeat.start()
        heartbeat.stop()
        assert time.monotonic() - start < 5

    @pytest.mark.parametrize("interval", [0, 3_600_001])
    def test_bad_intervals(self, arena, interval):
        with pytest.raises(ValueError, match=f"interval is {interval} ms"):
            Heartbeat(Slot(arena, 0), -1, interval).start()

    def test_it_has_a_name(self, arena):
        heartbeat = Heartbeat(Slot(arena, 0), -1, 10)
        tasks = Path("/proc/self/task")
        before = set(tasks.iterdir())
        heartbeat.start()
        (task,) = set(tasks.iterdir()) - before
        deadline = time.monotonic() + 10
        while (task / "comm").read_text() != "vw-heartbeat\n":
            assert time.monotonic() < deadline
        heartbeat.stop()
        assert set(tasks.iterdir()) == before

    def test_it_keeps_the_arena_open(self):
        arena = Arena.create(4 << 20)
        heartbeat = Heartbeat(Slot(arena, 0), -1, 10)
        heartbeat.start()
        with pytest.raises(BufferError):
            arena.close()
        del heartbeat  # also stops it
        arena.close()
