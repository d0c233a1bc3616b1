"""Who waits for a job reads its worker's answer: whoever that is, and however the wait ends."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from conftest import SETTINGS, started, until

import vortex_worker as vw
from vortex_worker.errors import Cancelled, FabricClosed, ValidationError, WorkerLost


def test_several_threads_wait_for_one_job(fabric, gate):
    job = started(fabric.submit("Gate", {"gate": gate}))
    results = []
    threads = [threading.Thread(target=lambda: results.append(job.exception())) for _ in range(4)]
    for thread in threads:
        thread.start()
    gate.fill_(1)
    for thread in threads:
        thread.join(60)
    assert results == [None] * 4


def test_a_job_whose_waiter_has_left_ends_all_the_same(single):
    gate = single.tensor([0])
    job = started(single.submit("Gate", {"gate": gate}))
    ended = []
    job.add_done_callback(ended.append)
    with pytest.raises(TimeoutError):
        job.result(timeout=0.05)
    gate.fill_(1)
    until(lambda: ended, "the end of a job that nobody waits for")
    assert job.exception(0) is None


def test_who_waits_is_woken_alone():
    others = set(threading.enumerate())
    with vw.Fabric(1, **SETTINGS) as fabric:
        fabric.wait_ready(60)
        (thread,) = [t for t in threading.enumerate() if t.name == "vortex-fabric" and t not in others]

        def sleeps():
            with open(f"/proc/self/task/{thread.native_id}/status") as file:
                return next(int(line.split()[1]) for line in file if line.startswith("voluntary_ctxt_switches"))

        before = sleeps()
        for _ in range(60):
            job = fabric.submit("Nap", params={"seconds": 0.01})  # so long that it is waited for when the answer comes
            assert job.exception() is None
        assert sleeps() - before < 30


def test_a_queued_job_ends_after_the_one_that_somebody_waits_for(single):
    gate = single.tensor([0])
    first = started(single.submit("Gate", {"gate": gate}))
    second = single.submit("Identity", {"tensor": 2})
    ended = []
    second.add_done_callback(ended.append)
    threading.Timer(0.05, gate.fill_, [1]).start()
    assert first.exception() is None
    until(lambda: ended, "the job behind it")
    assert second.result()["tensor"] == 2


def test_waiters_and_others_share_the_workers(fabric):
    """Calls that wait, jobs that are collected later, and progress in between: each gets its own."""
    wrong = []

    def wait(base):
        for number in range(base, base + 60):
            if fabric.run("Identity", {"tensor": number})["tensor"] != number:
                wrong.append(number)

    def collect(base):
        for start in range(base, base + 60, 10):
            jobs = [fabric.submit("Identity", {"tensor": number}) for number in range(start, start + 10)]
            wrong.extend(j for n, j in enumerate(jobs, start) if j.result()["tensor"] != n)

    def report(base):
        for number in range(1, 11):
            if fabric.run("Steps", params={"steps": number})["steps"] != number:
                wrong.append(number)

    threads = [
        threading.Thread(target=what, args=(1000 * n,)) for n, what in enumerate([wait, wait, collect, collect, report])
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads)
    assert wrong == []


def test_a_waiter_whose_worker_dies_gets_the_result_of_the_next():
    with vw.Fabric(1, **SETTINGS) as fabric:
        fabric.wait_ready(60)
        gate = fabric.tensor([0])
        results = []
        waiter = threading.Thread(target=lambda: results.append(fabric.run("Gate", {"gate": gate}, retries=1)))
        waiter.start()
        victim = until(lambda: next((w["pid"] for w in fabric.workers() if w["job"]), None), "the job")
        os.kill(victim, signal.SIGKILL)
        until(lambda: any(w["job"] and w["pid"] != victim for w in fabric.workers()), "the second try")
        gate.fill_(1)
        waiter.join(60)
        assert len(results) == 1


def test_who_waits_for_a_job_that_another_finds_can_t_be_sent_is_told():
    """The other has come to it first, and has yet to say so: the worker says nothing more."""
    with vw.Fabric(1, **SETTINGS) as fabric:
        jobs, gate = fabric.wait_ready(60)._crew.jobs, fabric.tensor([0])
        jobs.flight._expected, jobs.flight.patience = dict.fromkeys(("DeafGate", "Identity"), 1000), 3600.0
        started(fabric.submit("DeafGate", {"gate": gate}))
        large = fabric.submit("Identity", {"tensor": "a" * (17 << 20)})
        link = large._runner
        with link._send_lock:
            task = link.unsent.popleft()
        told = []
        waiter = threading.Thread(target=lambda: told.append(large.exception()))
        waiter.start()
        gate.fill_(1)
        until(lambda: link.task is task, "its turn")
        jobs._reject(link, task, ValueError("it is too large"))
        waiter.join(10)
        assert [type(error) for error in told] == [ValidationError]
        assert fabric.run("Identity", {"tensor": 1})["tensor"] == 1


def test_nothing_turns_in_circles_while_who_reads_a_worker_that_has_hung_up_is_busy():
    with vw.Fabric(1, **SETTINGS) as fabric:
        inbox, looks = fabric.wait_ready(60)._crew.inbox, []
        real = inbox.read
        inbox.read = lambda link: (looks.append(link), real(link))
        fabric.observe(lambda job: job.on_progress(lambda job: time.sleep(0.3)))  # in which it closes its socket
        with pytest.raises(WorkerLost):
            fabric.run("HangUp", retries=0)
        assert len(looks) < 20


@pytest.mark.timeout(30)
def test_time_is_up_however_much_a_worker_has_to_say(single):
    job = single.submit("Hostile", params={"how": "progress without end"}, retries=0)
    with pytest.raises(TimeoutError):
        job.result(0.2)
    job.cancel()
    assert isinstance(job.exception(), Cancelled)


def test_closing_ends_the_wait():
    with vw.Fabric(1, **SETTINGS) as fabric:
        fabric.wait_ready(60)
        gate = fabric.tensor([0])
        told = []

        def wait():
            try:
                fabric.run("Gate", {"gate": gate})
            except FabricClosed as error:
                told.append(error)

        waiter = threading.Thread(target=wait)
        waiter.start()
        until(lambda: any(worker["job"] for worker in fabric.workers()), "the job")
        fabric.close()
        waiter.join(60)
        assert len(told) == 1


def test_a_fabric_is_not_closed_from_a_callback_whichever_thread_runs_it():
    with vw.Fabric(1, **SETTINGS) as fabric:
        gate = fabric.tensor([0])
        job = started(fabric.submit("Gate", {"gate": gate}))
        told = []

        def close(job):
            try:
                fabric.close()
            except RuntimeError as error:
                told.append(error)

        job.add_done_callback(close)
        threading.Timer(0.05, gate.fill_, [1]).start()
        assert job.exception() is None  # this thread reads it
        until(lambda: told, "the refusal")
        assert fabric.run("Identity", {"tensor": 1})["tensor"] == 1


INTERRUPTED = """
import os, signal, sys, threading, time
import vortex_worker as vw

with vw.Fabric(1, standby=0, custom_nodes=sys.argv[1], threads=1, grace=30) as fabric:
    fabric.wait_ready(60)
    worker = fabric.workers()[0]["pid"]
    for _ in range(3):
        def interrupt():
            while not fabric.workers()[0]["job"]:
                time.sleep(0.01)
            time.sleep(0.3)  # it is the wait that is to be interrupted, not what leads to it
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=interrupt).start()
        try:
            fabric.run("Sleep", params={"seconds": 3600.0})
        except KeyboardInterrupt:
            print("interrupted")
        print(fabric.run("Identity", {"tensor": 5})["tensor"], fabric.workers()[0]["pid"] == worker)
"""


def test_ctrl_c_ends_the_wait_and_cancels_the_job_and_the_worker_lives():
    command = [sys.executable, "-P", "-c", INTERRUPTED, str(SETTINGS["custom_nodes"])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "interrupted\n5 True\n" * 3


def test_ctrl_c_in_a_progress_callback_cancels_the_job_and_the_worker_lives(single):
    worker = single.workers()[0]["pid"]
    job = single.submit("Sleep", params={"seconds": 3600.0})
    told = []

    def interrupt(job):
        told.append(job.progress)
        if len(told) == 2:
            signal.raise_signal(signal.SIGINT)

    job.on_progress(interrupt)
    with pytest.raises(KeyboardInterrupt):
        job.result()
    job.cancel()
    assert isinstance(job.exception(), Cancelled)
    assert single.run("Identity", {"tensor": 5})["tensor"] == 5
    assert single.workers()[0]["pid"] == worker


def test_what_an_idle_worker_says_unasked_is_heard(single):
    """A worker that a caller read last is watched again by and by: one that hangs up then is replaced."""
    for number in range(5):
        assert single.run("Identity", {"tensor": number})["tensor"] == number
    before = single.workers()[0]["pid"]
    os.kill(before, signal.SIGKILL)
    until(lambda: all(w["pid"] != before and w["stage"] == "ready" for w in single.workers()), "another worker")
    assert single.run("Identity", {"tensor": 6})["tensor"] == 6


def takes_jobs(single):
    """The link of the worker that takes jobs; the one before it may not be buried yet."""
    job = single.submit("Identity", {"tensor": 1})
    job.result(60)
    return next(link for link in single._crew.links() if link.worker_id == job.worker)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs")
def test_a_worker_that_shares_its_callers_cpu_is_parted_from_it(single):
    """Where the kernel has put both on one CPU and leaves them there, jobs take twice as long."""
    link = takes_jobs(single)
    pid = link.process.pid
    allowed = os.sched_getaffinity(0)
    here = min(allowed)

    def cpu():
        return link.process._stat()[36]

    os.sched_setaffinity(0, {here})
    try:
        os.sched_setaffinity(pid, {here})
        before = link._parted
        until(lambda: single.run("Identity", {"tensor": 1}) and link._parted != before, "the notice of it")
        assert os.sched_getaffinity(pid) == {here}  # it may be nowhere else
        os.sched_setaffinity(pid, allowed)
        until(lambda: single.run("Identity", {"tensor": 1}) and int(cpu()) != here, "another CPU")
        assert os.sched_getaffinity(pid) == allowed
    finally:
        os.sched_setaffinity(0, allowed)


def test_results_without_bytes_take_no_memory(single):
    """Torch doesn't know where such a tensor is, so that each was given a place of its own."""
    link = takes_jobs(single)
    before, live = single._memory.client_live, link.lease.live
    kept = []
    for shape in ((0,), (2, 0, 3), (0, 5)):
        for given in (torch.empty(shape), single.empty(shape, torch.int16)):
            out = single.run("Identity", {"tensor": given})["tensor"]
            assert (out.shape, out.dtype) == (given.shape, given.dtype)
            kept.append(out)
    assert single._memory.client_live == before
    assert link.lease.live == live
