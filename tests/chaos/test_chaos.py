"""Jobs while everything around them dies: each ends once, with its right result or its right error.

``VORTEX_CHAOS_JOBS`` (10000) and ``VORTEX_CHAOS_SEED`` (1) make it longer, or another one.
"""

import collections
import contextlib
import gc
import os
import random
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from killer import Killer, counts, counts_of, descendants

import vortex_worker as vw
from vortex_worker.errors import ExecutionError, OOMSoft, SandboxViolation, WorkerLost

JOBS = int(os.environ.get("VORTEX_CHAOS_JOBS", "10000"))
SEED = int(os.environ.get("VORTEX_CHAOS_SEED", "1"))
SETTINGS = {
    "custom_nodes": Path(__file__).parent / "nodes", "threads": 1, "lease_size": 32 << 20, "client_size": 64 << 20,
    "grace": 0.3, "heartbeat_ms": 20, "heartbeat_timeout": 1.0, "memory_limit": 4 << 30,
}  # fmt: skip
PATIENT = 1_000_000  # retries of a job that must succeed, whatever happens to its workers


@pytest.fixture
def nothing_left():
    with vw.Fabric(1, **SETTINGS) as fabric:  # what is loaded once stays: that is no leak
        fabric.run("Work", {"tensor": torch.ones(4)}, {"number": 1})
    before = counts()
    yield
    assert counts() == before


@pytest.mark.timeout(3600)
def test_every_job_ends_once_with_its_right_result_or_error(nothing_left):
    choose = random.Random(SEED)
    ended = collections.Counter()
    problems = []
    kinds = collections.Counter()
    checked = threading.Semaphore(0)

    def check(job, kind, expected):
        error = job.exception(600)
        ended[job.id] += 0
        if kind in ("work", "use"):
            if error is not None:
                problems.append(f"{kind}: {error!r}")
            elif not torch.equal(job.result()["tensor"], expected):
                problems.append(f"{kind}: a wrong result")
        elif not isinstance(error, expected):
            problems.append(f"{kind}: {error!r}, not {expected}")
        checked.release()

    with vw.Fabric(4, standby=1, queue=64, **SETTINGS) as fabric:
        fabric.wait_ready(120)
        killer = Killer(fabric, SEED)
        killer.start()
        try:
            waiting = collections.deque()
            things = {}
            for i in range(JOBS):
                kind = choose.choices(
                    ["work", "use", "segv", "socket", "raise", "oom", "cancel"], [900, 60, 2, 2, 20, 4, 10]
                )[0]
                kinds[kind] += 1
                tensor = torch.arange(64.0) + i
                if kind == "use":
                    number = choose.randrange(4)
                    if number not in things:
                        things[number] = fabric.run("Make", params={"number": number}, retries=PATIENT)["thing"]
                    job = fabric.submit("Use", {"thing": things[number], "tensor": tensor}, retries=PATIENT)
                    expected = torch.full((1000,), float(number)) + tensor.sum()
                elif kind in ("work", "cancel"):
                    job = fabric.submit("Work", {"tensor": tensor}, {"number": i}, retries=PATIENT)
                    expected = tensor * i
                elif kind == "oom":
                    job, expected = fabric.submit("Hog", retries=PATIENT), OOMSoft
                elif kind == "raise":
                    job, expected = fabric.submit("Poison", params={"how": kind}, retries=PATIENT), ExecutionError
                elif kind == "socket":
                    # Killed from outside before it gets so far, it is lost like any other.
                    job = fabric.submit("Poison", params={"how": kind}, retries=3)
                    expected = (SandboxViolation, WorkerLost)
                else:
                    job, expected = fabric.submit("Poison", params={"how": kind}, retries=2), WorkerLost
                job.add_done_callback(lambda job: ended.update([job.id]))
                if kind == "cancel":
                    job.cancel()
                    assert job.wait(600)
                else:
                    waiting.append((job, kind, expected))
                while len(waiting) > 48:
                    check(*waiting.popleft())
            while waiting:
                check(*waiting.popleft())
        finally:
            killer.stop.set()
            killer.join()
        print(dict(kinds), dict(killer.sent))
        assert not problems, problems[:10]
        assert sum(killer.sent.values()) > 0
        assert set(ended.values()) == {1}, "a job ended twice, or never"
        assert fabric.run("Work", {"tensor": torch.ones(2)}, {"number": 3}, retries=PATIENT)["number"] == 3
        del job, expected, things, tensor
        gc.collect()
        end = time.monotonic() + 60
        while fabric._memory.client_live and time.monotonic() < end:
            time.sleep(0.05)
        assert fabric._memory.client_live == 0
        for lease in fabric._memory._leases:
            lease.collect()
            assert lease.live == 0


@pytest.mark.parametrize("moment", [0.0, 0.001, 0.003, 0.006, 0.01, 0.02])
def test_a_worker_killed_while_it_starts_is_replaced(moment):
    with vw.Fabric(1, standby=0, **SETTINGS) as fabric:
        fabric.wait_ready(120)
        for _ in range(5):
            (worker,) = fabric.workers()
            os.kill(worker["pid"], signal.SIGKILL)
            end = time.monotonic() + 60
            while time.monotonic() < end:
                young = [w for w in fabric.workers() if w["pid"] != worker["pid"]]
                if young:
                    break
            time.sleep(moment)
            os.kill(young[0]["pid"], signal.SIGKILL)
            result = fabric.run("Work", {"tensor": torch.ones(2)}, {"number": 5}, retries=PATIENT)
            assert result["tensor"].tolist() == [5, 5]
            fabric.wait_ready(120)


def test_a_storm_of_kills_is_outlived():
    """Workers that can't even start are no reason to give up for good: whoever kills them may stop."""
    with vw.Fabric(4, standby=1, **SETTINGS) as fabric:
        fabric.wait_ready(120)
        end = time.monotonic() + 3
        while time.monotonic() < end:
            for pid, name in descendants():
                if name == "vw-worker":
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
        assert fabric.run("Work", {"tensor": torch.ones(2)}, {"number": 5}, retries=PATIENT)["number"] == 5
        fabric.wait_ready(120)
