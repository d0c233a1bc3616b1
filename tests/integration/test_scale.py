"""More workers, and fewer, while jobs run."""

import threading

import pytest
from conftest import SETTINGS, gone, started, until

import vortex_worker as vw
from vortex_worker.errors import ConfigError


def pids(workers):
    return {worker["pid"] for worker in workers}


def test_more_workers_run_more_jobs_at_once():
    with vw.Fabric(1, **SETTINGS) as fabric:
        fabric.wait_ready(60)
        gate = fabric.tensor([0])
        jobs = [fabric.submit("Gate", {"gate": gate}) for _ in range(3)]
        started(jobs[0])
        assert not jobs[1].progress.total
        standby = pids(fabric.standbys())
        fabric.scale(3)
        for job in jobs:
            started(job)
        assert standby <= pids(fabric.workers())  # it was there, and was taken first
        gate.fill_(1)
        assert all(job.exception(60) is None for job in jobs)
        fabric.wait_ready(60)
        assert (len(fabric.workers()), len(fabric.standbys())) == (3, 1)


def test_fewer_workers_lose_no_job_and_no_object():
    with vw.Fabric(3, **SETTINGS) as fabric:
        fabric.wait_ready(60)
        gate = fabric.tensor([0])
        before = pids(fabric.workers() + fabric.standbys())
        jobs = [started(fabric.submit("Gate", {"gate": gate}, retries=0)) for _ in range(2)]
        boxes = [fabric.run("MakeBox", params={"value": 0.0})["box"]]
        jobs.append(started(fabric.submit("Gate", {"gate": gate}, retries=0)))
        fabric.scale(1)
        gate.fill_(1)
        assert all(job.exception(60) is None for job in jobs)
        boxes += [fabric.run("MakeBox", params={"value": n})["box"] for n in (1.0, 2.0)]
        until(lambda: sum(not gone(pid) for pid in before) == 2, "the end of two workers")
        assert (len(fabric.workers()), len(fabric.standbys())) == (1, 1)
        for value, box in enumerate(boxes):
            assert fabric.run("OpenBox", {"box": box})["value"].item() == value


def test_an_object_in_a_worker_that_stands_by_is_used_there():
    """Found in use: such a job waited for ever."""
    with vw.Fabric(2, **SETTINGS) as fabric:
        fabric.wait_ready(60)
        gate = fabric.tensor([0])
        boxes = [fabric.run("MakeBox", params={"value": 0.0})]
        busy = started(fabric.submit("Gate", {"gate": gate}))
        boxes.append(fabric.run("MakeBox", params={"value": 1.0}))
        gate.fill_(1)
        busy.result(60)
        fabric.scale(1)
        until(lambda: len(fabric.workers() + fabric.standbys()) == 2, "the end of a worker")
        for value, box in enumerate(boxes):
            assert fabric.run("OpenBox", {"box": box["box"]})["value"].item() == value


def test_scaling_up_and_down_disturbs_nobody():
    with vw.Fabric(2, **SETTINGS) as fabric:
        fabric.wait_ready(60)
        wrong, stop = [], threading.Event()

        def client(number):
            while not stop.is_set():
                if fabric.run("Identity", {"tensor": number}, retries=0) != {"tensor": number}:
                    wrong.append(number)

        threads = [threading.Thread(target=client, args=(n,)) for n in range(3)]
        for thread in threads:
            thread.start()
        for workers in (4, 1, 3, 2):
            fabric.scale(workers)
            fabric.wait_ready(60)
            assert len(fabric.workers()) == workers
        stop.set()
        for thread in threads:
            thread.join()
        assert not wrong
        until(lambda: len(fabric.workers() + fabric.standbys()) == 3, "the end of those too many")
        left = pids(fabric.workers() + fabric.standbys())
    assert all(gone(pid) for pid in left)


@pytest.mark.parametrize("workers", [0, -1, 257, True, 2.0, "3"])
def test_a_number_that_can_not_be_is_refused(single, workers):
    with pytest.raises(ConfigError, match=r"workers is .*: it takes a whole number, 1 to \d+: shared memory has room"):
        single.scale(workers)
    assert single.run("Identity", {"tensor": 1}) == {"tensor": 1}
