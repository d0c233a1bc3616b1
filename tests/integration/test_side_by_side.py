"""Jobs run side by side, for threads and for asyncio; those for which there is no room wait, or are refused."""

import asyncio
import threading
import time

import pytest
import torch
from conftest import SETTINGS, started, until

import vortex_worker as vw
from vortex_worker.errors import ExecutionError, QueueFull
from vortex_worker.supervisor.job import JobState

# ------------------------------------------------------------ side by side


def test_two_jobs_run_at_the_same_time_in_two_processes(fabric, gate):
    jobs = [started(fabric.submit("Gate", {"gate": gate})) for _ in range(2)]
    assert [job.state for job in jobs] == [JobState.RUNNING] * 2
    gate.fill_(1)
    assert len({job.result()["pid"] for job in jobs}) == 2


def test_many_threads_each_get_their_own_results(fabric):
    wrong = []

    def client(number):
        for step in range(25):
            value = number * 1000 + step
            out = fabric.run("Scale", {"tensor": torch.full((16,), float(value))}, {"factor": 2.0})
            if not torch.equal(out["tensor"], torch.full((16,), value * 2.0)):
                wrong.append(value)

    threads = [threading.Thread(target=client, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_asyncio_runs_many_jobs_and_gives_each_its_result(fabric):
    async def main():
        outs = await asyncio.gather(*(fabric.arun("Identity", {"tensor": n}) for n in range(50)))
        return [out["tensor"] for out in outs]

    assert asyncio.run(main()) == list(range(50))


def test_asyncio_raises_the_jobs_error(fabric):
    async def main():
        await fabric.arun("Misbehave", params={"how": "raise"})

    with pytest.raises(ExecutionError, match="the sky is falling"):
        asyncio.run(main())


def test_cancelling_the_asyncio_task_cancels_the_job(fabric, gate):
    async def main():
        task = asyncio.create_task(fabric.arun("Gate", {"gate": gate}))
        while not any(worker["job"] for worker in fabric.workers()):
            await asyncio.sleep(0.002)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    until(lambda: all(worker["job"] is None for worker in fabric.workers()), "the end of the cancelled job")
    assert not gate.item()


def test_an_asyncio_timeout_cancels_the_job(fabric, gate):
    async def main():
        await asyncio.wait_for(fabric.arun("Gate", {"gate": gate}), 0.05)

    with pytest.raises(TimeoutError):
        asyncio.run(main())
    until(lambda: all(worker["job"] is None for worker in fabric.workers()), "the end of the cancelled job")


# ------------------------------------------------------------------- queue


def test_a_full_queue_raises_or_waits_as_asked():
    with vw.Fabric(1, queue=2, **SETTINGS) as fabric:
        gate = fabric.tensor([0])
        running = started(fabric.submit("Gate", {"gate": gate}))
        queued = [fabric.submit("Identity", {"tensor": n}) for n in range(2)]
        with pytest.raises(QueueFull):
            fabric.submit("Identity", {"tensor": 2}, block=False)
        with pytest.raises(QueueFull):
            fabric.submit("Identity", {"tensor": 2}, timeout=0.01)
        late = []
        waiting = threading.Thread(target=lambda: late.append(fabric.run("Identity", {"tensor": 3})))
        waiting.start()
        assert late == []
        gate.fill_(1)
        waiting.join()
        assert late == [{"tensor": 3}]
        assert [job.result()["tensor"] for job in queued] == [0, 1]
        assert running.exception() is None


@pytest.mark.parametrize("how", ["cancelled", "overdue"])
def test_room_made_without_a_run_is_seen_by_who_waits(how):
    with vw.Fabric(1, queue=1, **SETTINGS) as fabric:
        gate = fabric.tensor([0])
        running = started(fabric.submit("Gate", {"gate": gate}))
        queued = fabric.submit("Identity", {"tensor": 1}, deadline=0.3 if how == "overdue" else None)
        late = []
        waiting = threading.Thread(target=lambda: late.append(fabric.submit("Identity", {"tensor": 2})))
        waiting.start()
        time.sleep(0.1)  # to let it wait; if it does not yet, the test only proves less
        if how == "cancelled":
            queued.cancel()
        waiting.join(60)
        woken = not waiting.is_alive()
        gate.fill_(1)
        waiting.join()
        assert woken
        assert late[0].result()["tensor"] == 2
        assert running.exception() is None
