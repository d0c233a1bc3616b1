"""A worker without a job is at rest, or replaced: what a node starts ends with its job, but for what only waits."""

import subprocess
import sys
import time

import pytest

import vortex_worker as vw
from vortex_worker.supervisor.rest import Rest

NODES = """
import threading
from concurrent.futures import ThreadPoolExecutor

from vortex_worker.executor import AbstractExecutor, Param, Port

POOL = ThreadPoolExecutor(2)


class Leave(AbstractExecutor):
    op_type = "Leave"
    output_ports = (Port("threads", "INT"),)
    params = (Param("busy", "BOOLEAN"),)

    def execute(self, inputs, params):
        list(POOL.map(abs, range(8)))  # its threads stay, and wait for more
        if params["busy"]:
            threading.Thread(target=self.spin, daemon=True).start()
        return {"threads": threading.active_count()}

    def spin(self):
        while True:
            sum(range(1000))
"""
THREADS = """
import threading
print(flush=True)
while True:
    thread = threading.Thread(target=lambda: sum(range(100000)))
    thread.start()
    thread.join()
"""


@pytest.fixture
def fabric(tmp_path):
    (tmp_path / "leave.py").write_text(NODES)
    with vw.Fabric(1, standby=1, custom_nodes=tmp_path, threads=1) as fabric:
        yield fabric.wait_ready(60)


def pid(fabric):
    (worker,) = fabric.workers()
    return worker["pid"]


def test_what_waits_may_stay(fabric):
    first = pid(fabric)
    assert fabric.run("Leave", params={"busy": False})["threads"] > 1
    time.sleep(2)  # several looks
    assert pid(fabric) == first


def test_what_computes_is_ended(fabric):
    first = pid(fabric)
    fabric.run("Leave", params={"busy": True})
    deadline = time.monotonic() + 30
    while not fabric.workers() or pid(fabric) == first:
        assert time.monotonic() < deadline, "it computes on"
        time.sleep(0.05)
    assert fabric.run("Leave", params={"busy": False})["threads"] > 1


@pytest.mark.parametrize(
    ("program", "busy"),
    [
        ("import time; print(flush=True); time.sleep(60)", False),
        ("print(flush=True)\nwhile True: pass", True),
        (THREADS, True),
    ],
    ids=["sleeps", "spins", "thread after thread"],
)
def test_by_the_kernels_word(program, busy):
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        rest = Rest(process.pid, 0)
        assert rest.unrest() is None  # too early
        time.sleep(0.5)
        found = rest.unrest()
        process.kill()
        process.wait()
        assert (found > 0.1) == busy
        assert rest.unrest() is None  # gone
    with pytest.raises(OSError, match="No such"):
        Rest(process.pid, 0)
