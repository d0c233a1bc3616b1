"""A program that has no descriptor left for a while: its fabric goes on when there are some again."""

import os
import resource
import signal
import time

import pytest
from conftest import SETTINGS, gone

import vortex_worker as vw


@pytest.fixture
def descriptors():
    """Takes all but so many, until it is asked for 1000 or the test ends."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = []

    def leave(number):
        if number >= 1000:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            while held:
                os.close(held.pop())
            return
        highest = max(map(int, os.listdir("/proc/self/fd")))
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1 + number, hard))
        try:
            while True:
                held.append(os.dup(0))
        except OSError:
            for _ in range(number):
                os.close(held.pop())

    yield leave
    leave(1000)


@pytest.mark.parametrize("left", [0, 2])
def test_workers_that_die_while_no_descriptor_is_left(descriptors, left):
    with vw.Fabric(1, standby=1, **SETTINGS) as fabric:
        fabric.wait_ready(60)
        before = len(os.listdir("/proc/self/fd"))
        pids = [worker["pid"] for worker in (*fabric.workers(), *fabric.standbys())]
        descriptors(left)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        job = fabric.submit("Identity", {"tensor": 1}, retries=2)
        time.sleep(1)
        descriptors(1000)
        assert job.result(60)["tensor"] == 1
        fabric.wait_ready(60)
        assert all(map(gone, pids))
        assert len(os.listdir("/proc/self/fd")) == before
