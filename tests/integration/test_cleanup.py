"""A fabric's life leaves nothing behind, however it ends: counts before and after are the same."""

import contextlib
import gc
import os
import subprocess
import sys
import threading

import pytest
import torch
from conftest import SETTINGS, until

import vortex_worker as vw


def counts():
    gc.collect()
    children = subprocess.run(
        ["ps", "--ppid", str(os.getpid()), "-o", "pid="], capture_output=True, text=True
    ).stdout.split()
    with open("/proc/self/maps") as maps:
        arenas = sum("vortex-arena" in line for line in maps)
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "children": len(children),
        "arenas": arenas,
        "shm": sorted(os.listdir("/dev/shm")),
    }


def use(fabric):
    tensor = fabric.tensor(torch.arange(4.0))
    assert fabric.run("Scale", {"tensor": tensor}, {"factor": 2.0})["tensor"].sum() == 12


@pytest.fixture(autouse=True)
def nothing_left():
    with vw.Fabric(1, **SETTINGS) as fabric:  # what is loaded once stays: that is no leak
        use(fabric)
    del fabric
    before = counts()
    yield
    assert counts() == before


def test_after_use():
    with vw.Fabric(2, **SETTINGS) as fabric:
        use(fabric)


def test_when_closed_before_any_worker_is_ready():
    vw.Fabric(2, **SETTINGS).close()


def test_after_an_exception():
    with pytest.raises(ZeroDivisionError), vw.Fabric(1, **SETTINGS) as fabric:  # noqa: PT012
        fabric.submit("Sleep", params={"seconds": 3600})
        _ = 1 / 0


def test_with_jobs_running_and_waiting():
    with vw.Fabric(1, **SETTINGS) as fabric:
        jobs = [fabric.submit("Sleep", params={"seconds": 3600}) for _ in range(5)]
    for job in jobs:
        with pytest.raises(vw.errors.FabricClosed):
            job.result()


def test_after_workers_died():
    with vw.Fabric(1, **SETTINGS) as fabric:
        for _ in range(2):
            with pytest.raises(vw.errors.JobError):
                fabric.run("Die", params={"how": "segv"}, retries=0)
        use(fabric)


def test_memory_is_free_when_nobody_holds_it_and_not_at_the_next_garbage_collection():
    """However its job ends. Inputs are large, and one reference cycle would keep them for as long as Python likes."""

    def endings(fabric):
        tensor = torch.zeros(1000)
        yield fabric.submit("Scale", {"tensor": tensor}, {"factor": 2.0})
        yield fabric.submit("Views", {"tensor": tensor})
        yield fabric.submit("Draw", {"tensor": tensor})  # refused, or not: it ends
        yield fabric.submit("InPlace", {"left": tensor, "right": [tensor]}, {"port": "left"})
        yield fabric.submit("Gate", {"gate": tensor}, deadline=0.05)
        yield fabric.submit("DeafGate", {"gate": tensor}, deadline=0.05)
        for how in ("kill", "segv", "socket", "close the socket"):
            yield fabric.submit("Die", {"tensor": tensor}, {"how": how}, retries=1)
        job = fabric.submit("Gate", {"gate": tensor})
        job.cancel()
        yield job

    with vw.Fabric(2, **SETTINGS) as fabric:
        fabric.wait_ready(60)
        gc.collect()
        gc.disable()
        try:
            for job in endings(fabric):
                with contextlib.suppress(vw.errors.VortexError):
                    job.result(60)
                name = repr(job)
                del job
                until(lambda: fabric._memory.client_live == 0, f"the end of the input of {name}", timeout=10)
            fabric.wait_ready(60)
            until(lambda: not any(lease.collect() or lease.live for lease in fabric._memory._leases), "that of results")
        finally:
            gc.enable()


def test_after_workers_that_never_start():
    with vw.Fabric(1, **SETTINGS, device="cuda:99") as fabric, pytest.raises(vw.errors.LaunchError):
        fabric.wait_ready(60)


def test_when_several_threads_close_at_once():
    fabric = vw.Fabric(1, **SETTINGS)
    fabric.submit("Sleep", params={"seconds": 3600})
    threads = [threading.Thread(target=fabric.close) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_a_fabric_that_nobody_closed_ends_with_the_interpreter():
    code = (
        "import vortex_worker as vw\n"
        "fabric = vw.Fabric(1, threads=1).wait_ready(60)\n"
        "print(fabric.workers()[0]['pid'], flush=True)\n"
        "fabric.submit('Sleep', params={'seconds': 3600})\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert not os.path.exists(f"/proc/{int(done.stdout)}")
