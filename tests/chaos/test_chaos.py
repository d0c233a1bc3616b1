"""Jobs while everything around them dies: each ends once, with its right result or its right error.

``VORTEX_CHAOS_JOBS`` (10000) and ``VORTEX_CHAOS_SEED`` (1) make it longer, or another one.
"""

import contextlib
import os
import signal
import time

import pytest
import torch
from killer import Killer, counts, counts_of, descendants
from mixture import PATIENT, SETTINGS, Jobs

import vortex_worker as vw

JOBS = int(os.environ.get("VORTEX_CHAOS_JOBS", "10000"))
SEED = int(os.environ.get("VORTEX_CHAOS_SEED", "1"))


@pytest.fixture
def nothing_left():
    with vw.Fabric(1, **SETTINGS) as fabric:  # what is loaded once stays: that is no leak
        fabric.run("Work", {"tensor": torch.ones(4)}, {"number": 1})
    before = counts()
    yield
    assert counts() == before


@pytest.mark.timeout(3600)
def test_every_job_ends_once_with_its_right_result_or_error(nothing_left):
    with vw.Fabric(4, standby=1, queue=64, **SETTINGS) as fabric:
        fabric.wait_ready(120)
        fabric.run("Work", {"tensor": torch.ones(2)}, {"number": 3})
        before = counts_of(fabric)
        killer = Killer(fabric, SEED, every=25)
        jobs = Jobs(fabric, killer, SEED)
        killer.start()
        try:
            for number in range(JOBS):
                jobs.submit(number)
            jobs.finish()
        finally:
            killer.stop.set()
            killer.join()
        print(dict(jobs.kinds), dict(jobs.errors), dict(killer.sent))
        assert not jobs.problems, jobs.problems[:10]
        assert sum(killer.sent.values()) > 0
        assert sum(jobs.kinds.values()) == len(jobs.ends) == JOBS
        assert set(jobs.ends.values()) == {1}, "a job ended twice, or never"
        jobs.things.clear()
        fabric.reload(120)  # those that are stopped, and not missed yet, too
        assert fabric.run("Work", {"tensor": torch.ones(2)}, {"number": 3}, retries=PATIENT)["number"] == 3
        assert counts_of(fabric) == before


def test_a_worker_killed_while_it_starts_is_replaced():
    with vw.Fabric(1, standby=0, **SETTINGS) as fabric:
        fabric.wait_ready(120)
        for moment in (0.0, 0.001, 0.003, 0.006, 0.01, 0.02) * 5:
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
