"""What becomes of a job: its progress, its end by a caller or a deadline, and its result."""

import pytest
import torch
from conftest import pid_of, started, until

from vortex_worker.errors import Cancelled, DeadlineExceeded
from vortex_worker.supervisor.job import JobState


def test_progress_rises_to_its_end(fabric):
    seen = []
    job = fabric.submit("Sleep", params={"seconds": 0.3})
    job.on_progress(lambda job: seen.append((job.progress.step, job.progress.total)))
    job.result()
    assert seen == sorted(seen)
    assert seen[-1] == (3, 3)
    assert job.progress[:2] == (3, 3)


def test_the_last_report_is_never_dropped(fabric):
    job = fabric.submit("Steps", params={"steps": 1000})  # far more reports than are sent
    assert job.result()["steps"] == 1000
    assert job.progress[:2] == (1000, 1000)


def test_a_queued_job_is_cancelled_at_once(fabric, gate):
    running = [started(fabric.submit("Gate", {"gate": gate})) for _ in range(2)]
    queued = fabric.submit("Identity", {"tensor": 1})
    assert queued.state is JobState.QUEUED
    queued.cancel()
    assert queued.done()
    with pytest.raises(Cancelled):
        queued.result()
    assert queued.attempts == 0
    gate.fill_(1)
    assert all(job.exception() is None for job in running)


def test_a_running_job_is_cancelled_at_its_next_report_and_its_worker_lives(fabric, gate):
    job = started(fabric.submit("Gate", {"gate": gate}))
    pids = {worker["pid"] for worker in fabric.workers()}
    job.cancel()
    with pytest.raises(Cancelled) as caught:
        job.result()
    assert caught.value.code == "WK-007"
    assert {worker["pid"] for worker in fabric.workers()} == pids


def test_a_node_may_end_in_its_own_way_when_cancelled(fabric):
    job = started(fabric.submit("TidyGate"))
    job.cancel()
    assert job.result()["pid"] in {worker["pid"] for worker in fabric.workers()}


def test_a_stuck_job_is_cancelled_by_force_and_its_worker_replaced(fabric, gate):
    job = started(fabric.submit("DeafGate", {"gate": gate}))
    pid = pid_of(fabric, job)
    job.cancel()
    with pytest.raises(Cancelled, match="killed"):
        job.result()
    assert job.attempts == 1
    fabric.wait_ready(60)
    assert pid not in {worker["pid"] for worker in fabric.workers()}


def test_cancelling_what_has_ended_does_nothing(fabric):
    job = fabric.submit("Identity", {"tensor": 5})
    assert job.result()["tensor"] == 5
    job.cancel()
    assert job.state is JobState.DONE
    assert job.result()["tensor"] == 5


def test_a_deadline_ends_a_job_that_reports(fabric, gate):
    fabric.wait_ready(60)
    pids = {worker["pid"] for worker in fabric.workers()}
    with pytest.raises(DeadlineExceeded) as caught:
        fabric.run("Gate", {"gate": gate}, deadline=0.05)
    assert caught.value.code == "WK-008"
    assert {worker["pid"] for worker in fabric.workers()} == pids


def test_a_deadline_ends_a_stuck_job_by_force(fabric, gate):
    job = started(fabric.submit("DeafGate", {"gate": gate}, deadline=0.05))
    pid = pid_of(fabric, job)
    with pytest.raises(DeadlineExceeded):
        job.result()
    fabric.wait_ready(60)
    assert pid not in {worker["pid"] for worker in fabric.workers()}


@pytest.mark.parametrize("node", ["Gate", "DeafGate"])
def test_a_deadline_s_error_says_what_the_job_did(fabric, gate, node):
    """Found by a first user: it named neither the time there was nor how far the node had come."""
    job = started(fabric.submit(node, {"gate": gate}, deadline=1))
    with pytest.raises(DeadlineExceeded) as caught:
        job.result()
    said = caught.value.message
    assert said.startswith(f"{node} (job {job.id}) was not done within its 1 s: it had been running for "), said
    assert " s, and its last report was step 1 of 2" in said
    assert said.endswith("; deadline= (--timeout) gives it more")


def test_a_deadline_ends_a_job_that_waits(fabric, gate):
    running = [started(fabric.submit("Gate", {"gate": gate})) for _ in range(2)]
    queued = fabric.submit("Identity", {"tensor": 1}, deadline=0.02)
    with pytest.raises(DeadlineExceeded, match=r"within its 0\.02 s: it was waiting for a worker; deadline="):
        queued.result()
    assert queued.attempts == 0
    gate.fill_(1)
    assert all(job.exception() is None for job in running)


def test_a_deadline_that_is_kept_changes_nothing(fabric):
    assert fabric.run("Identity", {"tensor": 1}, deadline=60)["tensor"] == 1


@pytest.mark.parametrize("deadline", [0, -1, float("nan"), float("inf"), 1e300])
def test_a_deadline_that_is_none_is_refused(fabric, deadline):
    with pytest.raises(ValueError, match="deadline"):
        fabric.submit("Identity", {"tensor": 1}, deadline=deadline)


def test_a_result_is_delivered_once_and_stays(fabric):
    calls = []
    job = fabric.submit("Identity", {"tensor": torch.ones(3)})
    job.add_done_callback(calls.append)
    first, second = job.result(), job.result()
    assert first["tensor"].data_ptr() == second["tensor"].data_ptr()
    until(lambda: calls, "the callback")
    assert calls == [job]
    job.add_done_callback(calls.append)
    assert calls == [job, job]
    assert job.exception() is None
    assert job.attempts == 1
    assert job.timings.execute > 0


def test_waiting_for_a_result_may_end_before_the_job_does(fabric, gate):
    job = started(fabric.submit("Gate", {"gate": gate}))
    with pytest.raises(TimeoutError):
        job.result(timeout=0)
    assert job.wait(0) is False
    assert job.state is JobState.RUNNING
    gate.fill_(1)
    assert job.wait() is True
    assert job.exception() is None


def test_a_callback_that_raises_harms_nothing_else(fabric):
    """The caller's bug, in the fabric's thread."""

    def fail(job):
        raise RuntimeError("a callback's own bug")

    job = fabric.submit("Steps", params={"steps": 3})
    job.on_progress(fail)
    job.add_done_callback(fail)
    assert job.result()["steps"] == 3
    assert fabric.run("Identity", {"tensor": 1})["tensor"] == 1
