"""A fabric for each module, and means to stop at a known point of a job."""

import shutil
import time
from pathlib import Path

import pytest

import vortex_worker as vw

ROOT = Path(__file__).parents[2]
NODES = Path(__file__).parent / "nodes"
#: Small enough to be filled, and quick to give up on what is stuck.
SETTINGS = {"custom_nodes": NODES, "threads": 1, "lease_size": 64 << 20, "client_size": 64 << 20, "grace": 0.3}


def until(condition, what="it", timeout=60):
    """Wait until ``condition()`` is true, and return what it gave. The bound is against hanging only."""
    end = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > end:
            raise AssertionError(f"{what} did not come about within {timeout} s")
        time.sleep(0.002)
    return value


def started(job):
    """Wait until the job's node has made its first report; the job."""
    until(lambda: job.progress.total or job.done(), f"the start of {job!r}")
    return job


def pid_of(fabric, job):
    """The process that runs a job."""
    return next(worker["pid"] for worker in fabric.workers() if worker["job"] == job.id)


def gone(pid):
    """Whether there is no process of that number, not even a zombie."""
    return not Path(f"/proc/{pid}").exists()


@pytest.fixture(scope="module")
def fabric():
    with vw.Fabric(2, **SETTINGS) as fabric:
        yield fabric.wait_ready(60)


@pytest.fixture(scope="module")
def single():
    """A fabric of one worker: what runs next runs in the same process."""
    with vw.Fabric(1, **SETTINGS) as fabric:
        yield fabric.wait_ready(60)


@pytest.fixture
def gate(fabric):
    """A closed gate in shared memory; opened at the end, so that nothing waits for ever."""
    gate = fabric.tensor([0])
    yield gate
    gate.fill_(1)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The digits example, copied: it must run from anywhere."""
    folder = tmp_path_factory.mktemp("digits")
    for name in ("workflow.json", "nodes.py", "network.py", "digits.safetensors"):
        shutil.copy(ROOT / "examples" / "digits" / name, folder)
    return folder
