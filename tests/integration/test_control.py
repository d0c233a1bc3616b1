"""What a fabric's owner may ask of it while jobs run: order, an end without loss, new nodes, small workers."""

import os
import signal
import threading
import time

import pytest
import torch
from conftest import SETTINGS, gone, pid_of, started, until

import vortex_worker as vw
from vortex_worker.errors import Cancelled, DeadlineExceeded, ExecutionError, FabricClosed, LaunchError, WorkerLost


def test_a_higher_priority_overtakes_what_waits():
    with vw.Fabric(1, **SETTINGS) as fabric:
        gate = fabric.tensor([0])
        running = started(fabric.submit("Gate", {"gate": gate}))
        order = []
        jobs = [
            fabric.submit("Identity", {"tensor": n}, priority=priority) for n, priority in enumerate([0, 5, -1, 5, 9])
        ]
        for number, job in enumerate(jobs):
            job.add_done_callback(lambda job, number=number: order.append(number))
        gate.fill_(1)
        assert [job.result(60)["tensor"] for job in jobs] == [0, 1, 2, 3, 4]
        assert order == [4, 1, 3, 0, 2]
        assert running.exception() is None
        with pytest.raises(TypeError, match="priority is 'high'"):
            fabric.submit("Identity", {"tensor": 1}, priority="high")


def test_draining_lets_every_job_end_and_takes_no_more():
    with vw.Fabric(1, **SETTINGS) as fabric:
        gate = fabric.tensor([0])
        jobs = [started(fabric.submit("Gate", {"gate": gate}))]
        jobs += [fabric.submit("Identity", {"tensor": n}) for n in range(5)]
        with pytest.raises(TimeoutError, match=r"jobs that have not ended within 0\.05 s: 6"):
            fabric.drain(0.05)
        with pytest.raises(FabricClosed, match="drained"):
            fabric.submit("Identity", {"tensor": 1})
        gate.fill_(1)
        fabric.drain(60)
        assert all(job.exception(0) is None for job in jobs)


NODE = """
from vortex_worker.executor import AbstractExecutor, Port


class Version(AbstractExecutor):
    op_type = "Version"
    output_ports = (Port("version", "INT"),)

    def execute(self, inputs, params):
        return {{"version": {}}}
"""


def test_reload_brings_new_nodes_and_drops_no_job(tmp_path):
    folder = tmp_path / "nodes"
    folder.mkdir()
    (folder / "version.py").write_text(NODE.format(1))
    with vw.Fabric(2, **(SETTINGS | {"custom_nodes": [SETTINGS["custom_nodes"], folder]})) as fabric:
        fabric.wait_ready(60)
        assert fabric.run("Version") == {"version": 1}
        gate = fabric.tensor([0])
        running = started(fabric.submit("Gate", {"gate": gate}))
        box = fabric.run("MakeBox", params={"value": 2.0})["box"]
        (folder / "version.py").write_text(NODE.format(2))
        with pytest.raises(TimeoutError):
            fabric.reload(0.05)  # one of them has a job
        assert fabric.run("Version") == {"version": 2}
        gate.fill_(1)
        assert running.exception(60) is None
        assert running.attempts == 1
        fabric.reload(60)
        assert fabric.run("Version") == {"version": 2}
        assert fabric.run("OpenBox", {"box": box})["value"].item() == 2.0  # it was made again


def test_a_worker_that_grows_too_much_is_replaced_after_its_job():
    with vw.Fabric(1, memory_growth=64 << 20, **SETTINGS) as fabric:
        fabric.wait_ready(60)
        first = fabric.workers()[0]["pid"]
        for _ in range(3):
            assert fabric.run("Identity", {"tensor": 1}) == {"tensor": 1}
        assert fabric.workers()[0]["pid"] == first
        assert fabric.run("Leak", params={"bytes": 128 << 20}, retries=0)["count"] == 128 << 20
        until(lambda: all(w["pid"] != first for w in fabric.workers()) and fabric.workers(), "another worker")
        assert fabric.run("Identity", {"tensor": 2}) == {"tensor": 2}


def test_jobs_from_many_threads_survive_a_reload():
    with vw.Fabric(2, **SETTINGS) as fabric:
        fabric.wait_ready(60)
        results, stop = [], threading.Event()

        def client(number):
            while not stop.is_set():
                results.append(fabric.run("Identity", {"tensor": number}, retries=0) == {"tensor": number})

        threads = [threading.Thread(target=client, args=(n,)) for n in range(3)]
        for thread in threads:
            thread.start()
        pids = {worker["pid"] for worker in fabric.workers()}
        for _ in range(3):
            fabric.reload(60)
        stop.set()
        for thread in threads:
            thread.join()
        assert all(results)
        assert pids.isdisjoint(worker["pid"] for worker in fabric.workers())
        assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)


def test_a_node_that_makes_no_progress_is_told_from_a_worker_that_was_stopped():
    with vw.Fabric(1, stall_timeout=0.3, heartbeat_timeout=0.6, heartbeat_ms=20, **SETTINGS) as fabric:
        fabric.wait_ready(60)
        gate = fabric.tensor([0])
        stuck = fabric.submit("DeafGate", {"gate": gate}, retries=0)
        with pytest.raises(WorkerLost, match=r"alive, but its node made no progress for 0\.3 s"):
            stuck.result(60)
        gate.fill_(1)
        assert fabric.run("Steps", params={"steps": 1000}) == {"steps": 1000}
    with vw.Fabric(1, heartbeat_timeout=0.3, heartbeat_ms=20, **SETTINGS) as fabric:
        gate = fabric.tensor([0])
        job = started(fabric.submit("Gate", {"gate": gate}, retries=0))
        os.kill(pid_of(fabric, job), signal.SIGSTOP)
        with pytest.raises(WorkerLost, match=r"it was stopped: no heartbeat for 0\.3 s"):
            job.result(60)


def test_a_node_shows_what_it_makes_so_far():
    with vw.Fabric(1, standby=0, **SETTINGS) as fabric:
        fabric.wait_ready(60)
        (lease,) = [lease for lease in fabric._memory._leases if lease.held]
        seen = []
        job = fabric.submit("Show", params={"steps": 1000, "size": 1 << 20})  # 4 MiB each, of a lease of 64
        job.on_progress(lambda job, seen=seen: seen.append((job.progress.step, job.preview)))
        assert job.result(60)["tensor"][0] == 1000
        assert job.preview is None  # the result takes its place
        shown = [(step, preview) for step, preview in seen if preview is not None]
        assert shown
        assert all(preview.shape == (1 << 20,) and preview[0] == preview[-1] <= step for step, preview in shown)
        del seen, shown, job
        until(lambda: not fabric.run("Identity", {"tensor": 7}) or not lease.live, "the return of every preview")


def test_a_preview_costs_nothing_between_reports():
    with vw.Fabric(1, standby=0, **SETTINGS) as fabric:
        job = fabric.submit("Show", params={"steps": 5000, "way": "function"})
        assert 1 <= job.result(60)["made"] < 5000
        given = torch.arange(5.0)
        views = []
        job = fabric.submit("Show", {"tensor": given}, {"steps": 3, "way": "input"})
        job.on_progress(lambda job: views.append(job.preview))
        job.result(60)
        assert views
        assert all(torch.equal(view, given[1:]) for view in views)
        views.clear()  # who holds two previews gets no more
        with pytest.raises(ExecutionError, match="a preview is a tensor, or a function that makes one, not a str"):
            fabric.run("Show", params={"steps": 3, "way": "rubbish"})


def test_a_kernel_that_is_too_old_for_the_configuration_is_refused():
    begun = time.monotonic()
    with pytest.raises(LaunchError, match=r"Landlock is of ABI .*, and VORTEX_LANDLOCK_ABI asks for 99"):
        vw.Fabric(1, standby=0, landlock_abi=99).wait_ready(60)
    assert time.monotonic() - begun < 50  # it does not try again and again


def test_results_that_keep_every_lease_are_told_and_not_waited_for(monkeypatch):
    """Found by the chaos suite: who waited for a job kept the results for which its worker waited."""
    from vortex_worker.errors import OutOfArena
    from vortex_worker.supervisor import fabric as module

    monkeypatch.setattr(module, "_SPARE_LEASES", 1)
    with vw.Fabric(1, standby=0, **SETTINGS) as fabric:
        kept = []
        for _ in range(2):
            kept.append(fabric.run("Scale", {"tensor": torch.ones(4)}, {"factor": 2.0}))
            os.kill(fabric.workers()[0]["pid"], signal.SIGKILL)
        job = fabric.submit("Identity", {"tensor": torch.ones(4)}, retries=9)
        with pytest.raises(OutOfArena, match="drop results that are no longer needed"):
            job.result(60)
        kept.clear()
        assert fabric.run("Identity", {"tensor": 7}, retries=9) == {"tensor": 7}


def test_a_far_deadline_keeps_no_outputs():
    with vw.Fabric(1, standby=0, **SETTINGS) as fabric:
        fabric.wait_ready(60)
        for _ in range(3):
            fabric.run("Scale", {"tensor": torch.ones(4)}, {"factor": 2.0}, deadline=3600.0)
        (lease,) = [lease for lease in fabric._memory._leases if lease.held]
        until(lambda: not fabric.run("Identity", {"tensor": 7}) or not lease.live, "the return of every handle")


def test_a_job_is_cancelled_at_every_stage():
    """Before there is a worker; where it waits for a lost object; stuck in native code with Python's lock held."""
    with vw.Fabric(1, **SETTINGS) as fabric:
        early = fabric.submit("Identity", {"tensor": 1})
        early.cancel()
        assert isinstance(early.exception(60), Cancelled)
        assert early.attempts == 0

        box = fabric.run("MakeSlowBox", {"gate": fabric.tensor([1.0])})["box"]
        gate = fabric.tensor([0.0])
        slow = fabric.submit("MakeSlowBox", {"gate": gate})
        gate.fill_(1.0)
        box = slow.result(60)["box"]
        gate.fill_(0.0)  # to be made again, it takes until the gate is open
        os.kill(fabric.workers()[0]["pid"], signal.SIGKILL)
        waiting = fabric.submit("OpenBox", {"box": box}, retries=3)
        until(lambda: any(w["job"] not in (None, waiting.id) for w in fabric.workers()), "the making of its box")
        waiting.cancel()
        assert isinstance(waiting.exception(60), Cancelled)
        gate.fill_(1.0)
        assert fabric.run("OpenBox", {"box": box}, retries=3)["uses"] == 1

        stuck = started(fabric.submit("Stuck"))
        pid = pid_of(fabric, stuck)
        stuck.cancel()
        with pytest.raises(Cancelled, match=r"did not stop within 0\.3 s"):
            stuck.result(60)
        until(lambda: gone(pid), "the end of its worker")
        assert fabric.run("Identity", {"tensor": 2}) == {"tensor": 2}


def test_a_deadline_ends_a_job_that_is_stuck_in_native_code(fabric):
    with pytest.raises(DeadlineExceeded):
        fabric.run("Stuck", deadline=0.05)
    assert fabric.run("Identity", {"tensor": 2}) == {"tensor": 2}


def test_a_job_that_is_cancelled_does_not_run_again_when_its_worker_dies():
    with vw.Fabric(1, standby=1, **SETTINGS | {"grace": 30.0}) as fabric:
        fabric.wait_ready(60)
        gate = fabric.tensor([0])
        job = started(fabric.submit("DeafGate", {"gate": gate}, retries=1))
        pid = pid_of(fabric, job)
        job.cancel()
        os.kill(pid, signal.SIGKILL)
        assert isinstance(job.exception(60), Cancelled)
        assert job.attempts == 1
        gate.fill_(1)
        assert fabric.run("Identity", {"tensor": 1})["tensor"] == 1
