"""Jobs that a worker has beside the one it runs: in order, each once, and what happens to that one is not theirs."""

import collections
import os
import signal
import threading
from pathlib import Path

import pytest
from conftest import SETTINGS, gone, started, until

import vortex_worker as vw
from vortex_worker import bench
from vortex_worker.errors import (
    Cancelled,
    DeadlineExceeded,
    FabricClosed,
    SandboxViolation,
    ValidationError,
    WorkerLost,
)
from vortex_worker.supervisor.job import JobState

SHORT = ("Gate", "DeafGate", "Identity", "Die", "Hostile", "RandomTensor")
GATES = []


def expect_short(fabric):
    """As if such jobs had been short lately; and what is ahead is not taken back."""
    fabric._crew.jobs.flight._expected = dict.fromkeys(SHORT, 1000)
    fabric._crew.jobs.flight.patience = 3600.0
    return fabric


@pytest.fixture
def one(single):
    """A fabric of one worker, and another that stands by. Its gates are open at the end."""
    GATES.clear()
    yield expect_short(single.wait_ready(60))
    for gate in GATES:
        gate.fill_(1)


def link_of(fabric):
    return next(link for link in fabric._crew.links() if link.active and not link.dying)


def taken_back(fabric, links):
    """Have what is ahead in each taken back, as soon as its first job has lasted 10 ms."""
    flight = fabric._crew.jobs.flight
    flight.patience = 0.01
    for link in links:
        fabric._crew.call(flight._look, link)

    def all_taken():
        with fabric._crew.lock:  # else it could be seen half done
            return all(link.ahead and all(task.job.done() for task in link.ahead) for link in links)

    until(all_taken, "that they are taken back")


def held(fabric, op_type="Gate", **options):
    """A job that keeps the worker until its gate is opened; and the gate."""
    gate = fabric.tensor([0])
    GATES.append(gate)
    return started(fabric.submit(op_type, {"gate": gate}, **options)), gate


def identities(fabric, numbers, **options):
    return [fabric.submit("Identity", {"tensor": number}, **options) for number in numbers]


def test_they_run_in_order_and_end_once(one):
    first, gate = held(one)
    ends = []
    jobs = identities(one, range(30))
    for job in jobs:
        job.add_done_callback(ends.append)
    link = link_of(one)
    assert len(link.ahead) == 16
    assert {job.state for job in jobs} == {JobState.QUEUED}
    gate.fill_(1)
    assert [job.result(60)["tensor"] for job in jobs] == list(range(30))
    until(lambda: len(ends) == 30, "every end")
    assert ends == jobs
    assert {job.attempts for job in jobs} == {1}
    assert first.exception() is None
    assert (link.task, len(link.ahead), link.load) == (None, 0, 0)


def test_who_waits_for_one_reads_those_before_it_too(one):
    first, gate = held(one)
    jobs = identities(one, range(5))
    threading.Timer(0.05, gate.fill_, [1]).start()
    assert jobs[-1].result(60)["tensor"] == 4
    assert all(job.done() for job in (first, *jobs))


def test_jobs_that_were_not_seen_to_be_short_are_not_given_ahead():
    with vw.Fabric(1, **SETTINGS) as fabric:
        _, gate = held(fabric.wait_ready(60))
        identities(fabric, range(3))
        assert not link_of(fabric).ahead
        gate.fill_(1)


def test_nor_are_those_that_may_run_once_only_and_questions(one):
    _, gate = held(one)
    once = one.submit("Identity", {"tensor": 1}, retries=0)
    assert not link_of(one).ahead
    gate.fill_(1)
    assert once.result(60)["tensor"] == 1


def test_short_jobs_are_found_out(fabric):
    for _ in range(20):
        jobs = fabric.submit_many([("Identity", {"tensor": number}) for number in range(200)])
        assert [job.result(60)["tensor"] for job in jobs] == list(range(200))
        if fabric._crew.jobs.flight.expects("Identity") < 1_000_000:
            break
    else:
        raise AssertionError("200 no-op jobs took 1 ms each, 20 times")


def test_a_higher_priority_overtakes_all_but_what_is_ahead(one):
    _, gate = held(one)
    ends = []
    jobs = identities(one, range(20))
    urgent = one.submit("Identity", {"tensor": 99}, priority=1)
    for job in (*jobs, urgent):
        job.add_done_callback(ends.append)
    gate.fill_(1)
    until(lambda: len(ends) == 21, "every end")
    assert ends == [*jobs[:16], urgent, *jobs[16:]]


# ---------------------------------------------------------------------------- death


@pytest.mark.parametrize("retries", [0, 1])
def test_a_death_is_that_of_the_job_that_ran(one, retries):
    first, _ = held(one, retries=retries)
    jobs = identities(one, range(5))

    def has_them_all(link):
        return link.alive and link.task is not None and link.task.job is first and len(link.ahead) == 5

    for _ in range(1 + retries):
        link = until(lambda: next(filter(has_them_all, one._crew.links()), None), "all of them in one worker")
        os.kill(link.process.pid, signal.SIGKILL)
        until(lambda link=link: not link.alive, "its burial")
    assert [job.result(60)["tensor"] for job in jobs] == list(range(5))
    assert {job.attempts for job in jobs} == {1}
    assert isinstance(first.exception(60), WorkerLost)
    assert first.attempts == 1 + retries


def test_a_denied_call_of_the_next_is_not_blamed_on_the_one_whose_result_nobody_read_yet(one):
    first, gate = held(one)
    second = one.submit("Die", params={"how": "socket"})
    third = one.submit("Identity", {"tensor": 3})
    link = link_of(one)
    assert [task.job for task in link.ahead] == [second, third]
    with link.reading:
        gate.fill_(1)
        until(lambda: link.slot.job_id == second.id, "the second job")
        until(lambda: link.lags or link.denial, "the denial")
    one._crew.inbox.watch(link)
    assert first.exception(60) is None
    assert isinstance(second.exception(60), SandboxViolation)
    assert third.result(60)["tensor"] == 3
    assert third.attempts == 1


def test_a_write_to_an_input_is_that_of_the_job_that_made_it(one):
    first, gate = held(one)
    second = one.submit("Die", params={"how": "segv"}, retries=1)
    third = one.submit("Identity", {"tensor": 3})
    gate.fill_(1)
    assert isinstance(second.exception(60), WorkerLost)
    assert first.exception(60) is None
    assert third.result(60)["tensor"] == 3
    assert (first.attempts, second.attempts, third.attempts) == (1, 2, 1)


# ---------------------------------------------------------------------------- ends


@pytest.mark.parametrize("op_type", ["Gate", "DeafGate"])
def test_one_that_is_cancelled_ends_at_once_and_harms_nobody(one, op_type):
    first, gate = held(one, op_type)
    second, third = identities(one, range(2))
    pid = link_of(one).process.pid
    second.cancel()
    assert isinstance(second.exception(0), Cancelled)
    assert second.attempts == 0
    gate.fill_(1)
    assert third.result(60)["tensor"] == 1
    assert first.exception(60) is None
    assert link_of(one).process.pid == pid


def test_one_that_is_overdue_ends_at_once_and_harms_nobody(one):
    first, gate = held(one, "DeafGate")
    second = one.submit("Identity", {"tensor": 2}, deadline=0.05)
    third = one.submit("Identity", {"tensor": 3})
    pid = link_of(one).process.pid
    with pytest.raises(DeadlineExceeded, match="was waiting for a worker"):
        second.result(60)
    gate.fill_(1)
    assert third.result(60)["tensor"] == 3
    assert first.exception(60) is None
    assert link_of(one).process.pid == pid


def test_one_that_had_begun_when_it_was_cancelled_may_not_keep_its_worker(one):
    first, gate = held(one)
    shut = one.tensor([0])
    GATES.append(shut)
    second = one.submit("DeafGate", {"gate": shut})
    third = one.submit("Identity", {"tensor": 3})
    link = link_of(one)
    with link.reading:
        gate.fill_(1)
        until(lambda: link.slot.job_id == second.id and link.slot.snapshot().total == 2, "the second job")
        second.cancel()
        assert second.done()
    one._crew.inbox.watch(link)
    assert first.exception(60) is None
    assert third.result(60)["tensor"] == 3
    assert third.attempts == 1
    until(lambda: gone(link.process.pid) or not link.alive, "its end")


def test_they_are_taken_back_when_the_first_is_long_after_all():
    with vw.Fabric(2, **SETTINGS) as fabric:
        expect_short(fabric.wait_ready(60))
        gates = [fabric.tensor([0]) for _ in range(2)]
        calls = [("Gate", {"gate": gate}) for gate in gates]
        calls += [("Identity", {"tensor": number}) for number in range(8)]
        first, second, *jobs = fabric.submit_many(calls)
        links = [link for link in fabric._crew.links() if link.active]
        until(lambda: all(len(link.ahead) == 4 for link in links), "jobs ahead")
        taken_back(fabric, links)
        assert not any(job.done() for job in jobs)
        gates[1].fill_(1)
        assert [job.result(60)["tensor"] for job in jobs] == list(range(8))
        assert {(job.attempts, job.worker) for job in jobs} == {(1, second.worker)}
        assert not first.done()
        gates[0].fill_(1)
        assert first.exception(60) is None
        until(lambda: not any(link.task for link in links), "the answers for those that were taken back")
        assert [worker["jobs_done"] for worker in fabric.workers()] == [1, 9]
        assert {link.load for link in links} == {0}


def test_what_was_taken_back_is_not_given_to_that_worker_again_before_it_has_answered(one):
    gate = one.tensor([0])
    GATES.append(gate)
    first, *jobs = one.submit_many([("Gate", {"gate": gate})] + [("Identity", {"tensor": n}) for n in range(8)])
    link = link_of(one)
    taken_back(one, [link])
    one._crew.jobs.flight.patience = 3600
    more = one.submit("Identity", {"tensor": 8})
    assert len(link.ahead) == len(one._crew.jobs._scheduler) - 1 == 8
    gate.fill_(1)
    assert [job.result(60)["tensor"] for job in (*jobs, more)] == list(range(9))
    assert {job.attempts for job in (first, *jobs, more)} == {1}
    assert (link.task, link.load) == (None, 0)


def test_one_that_was_taken_back_is_cancelled_where_it_waits():
    with vw.Fabric(1, **SETTINGS) as fabric:
        expect_short(fabric.wait_ready(60))
        gate = fabric.tensor([0])
        calls = [("Gate", {"gate": gate}), ("Identity", {"tensor": 2}), ("Identity", {"tensor": 3})]
        first, second, third = fabric.submit_many(calls)
        link = link_of(fabric)
        until(lambda: len(link.ahead) == 2, "jobs ahead")
        taken_back(fabric, [link])
        for _ in range(2):
            second.cancel()
        assert isinstance(second.exception(0), Cancelled)
        gate.fill_(1)
        assert third.result(60)["tensor"] == 3
        assert (first.exception(60), third.attempts, second.attempts) == (None, 1, 0)
        until(lambda: link.task is None, "the answers for those that were taken back")
        assert link_of(fabric) is link


def test_a_deaf_one_that_is_cancelled_twice_and_overdue_costs_one_worker_and_none_behind_it(one):
    first, _ = held(one, "DeafGate", deadline=0.2)
    jobs = identities(one, range(4))
    for _ in range(2):
        first.cancel()
    assert isinstance(first.exception(60), Cancelled | DeadlineExceeded)
    assert [job.result(60)["tensor"] for job in jobs] == list(range(4))
    assert {job.attempts for job in jobs} == {1}
    link = link_of(one)
    with pytest.raises(TimeoutError):
        held(one)[0].result(1)  # longer than any timer that was left
    assert link_of(one) is link


def test_closing_ends_them():
    with vw.Fabric(1, **SETTINGS) as fabric:
        expect_short(fabric.wait_ready(60))
        held(fabric, "DeafGate")
        jobs = identities(fabric, range(20))
        fabric.close()
        assert {type(job.exception(0)) for job in jobs} == {FabricClosed}


def test_a_reload_lets_them_end(one):
    first, gate = held(one)
    jobs = identities(one, range(20))
    threading.Timer(0.05, gate.fill_, [1]).start()
    one.reload(60)
    assert [job.result(60)["tensor"] for job in jobs] == list(range(20))
    assert first.exception(60) is None


def test_draining_waits_for_them():
    with vw.Fabric(1, **SETTINGS) as fabric:
        expect_short(fabric.wait_ready(60))
        _, gate = held(fabric)
        jobs = identities(fabric, range(20))
        threading.Timer(0.05, gate.fill_, [1]).start()
        fabric.drain(60)
        assert [job.result(0)["tensor"] for job in jobs] == list(range(20))


# ------------------------------------------------------------------------- what is sent


def test_a_large_one_waits_for_its_turn_and_those_behind_it_too(one):
    first, gate = held(one, "DeafGate")  # which reads nothing meanwhile
    texts = ["a" * size for size in (10, 1 << 20, 10, 1 << 20, 10)]
    jobs = [one.submit("Identity", {"tensor": text}) for text in texts]
    link = link_of(one)
    assert len(link.ahead) == 5
    assert len(link.unsent) == 4
    gate.fill_(1)
    assert [job.result(60)["tensor"] for job in jobs] == texts
    assert first.exception(60) is None
    assert not link.unsent


def test_one_that_can_t_be_sent_harms_nobody(one):
    _, gate = held(one)
    before = one.submit("Identity", {"tensor": 1})
    large = one.submit("Identity", {"tensor": "a" * (17 << 20)})
    behind = one.submit("Identity", {"tensor": 2})
    gate.fill_(1)
    with pytest.raises(ValidationError, match="give large data as tensors"):
        large.result(60)
    assert (before.result(60)["tensor"], behind.result(60)["tensor"]) == (1, 2)


def test_nothing_goes_past_one_that_can_t_be_sent_before_that_is_told(one):
    """Its worker would answer at once for a job that has not its turn yet, and be killed for it."""
    _, gate = held(one)
    large = one.submit("Identity", {"tensor": "a" * (17 << 20)})
    behind = one.submit("Identity", {"tensor": 2})
    link = link_of(one)
    link._send_lock.acquire()
    gate.fill_(1)
    until(lambda: link.task.job is large, "its turn")
    with one._crew.lock:
        link._send_lock.release()
        for _ in range(2):
            link.flush()
        assert behind in [task.job for task in link.unsent]
    with pytest.raises(ValidationError, match="give large data as tensors"):
        large.result(60)
    assert behind.result(60)["tensor"] == 2
    assert behind.attempts == 1


def test_their_tensors_are_released_while_the_worker_is_never_idle(one):
    """Its lease has 64 MiB."""
    window = collections.deque()
    for seed in range(60):  # 4 MiB each
        window.append(one.submit("RandomTensor", params={"shape": [1 << 20], "seed": seed}))
        if len(window) > 5:
            assert window.popleft().result(60)["tensor"].shape == (1 << 20,)


# ------------------------------------------------------------------------- hostile


@pytest.mark.parametrize("how", ["another job's result", "another job's progress", "its result twice"])
def test_a_worker_that_answers_out_of_turn_is_believed_nothing_more(one, how):
    first, gate = held(one)
    liar = one.submit("Hostile", params={"how": how}, retries=1)
    jobs = identities(one, range(5))
    pid = link_of(one).process.pid
    assert liar.id + 1 == jobs[0].id  # it is the next one's result that it gives first
    gate.fill_(1)
    assert [job.result(60)["tensor"] for job in jobs] == list(range(5))
    assert first.exception(60) is None
    assert first.worker != jobs[-1].worker
    until(lambda: gone(pid), "its end")
    # A second result comes when the next job has its turn, which can't be told from its being to blame.
    assert jobs[0].attempts == (2 if how == "its result twice" else 1)
    assert {job.attempts for job in jobs[1:]} == {1}


def test_one_that_tells_of_endless_times_is_one_that_takes_long(one):
    _, gate = held(one)
    liar = one.submit("Hostile", params={"how": "endless timings"}, retries=1)
    waiting = one.submit("Identity", {"tensor": 1}, deadline=2, retries=0)  # what it took is noted while somebody waits
    gate.fill_(1)
    assert liar.result(60)["tensor"] == 1
    assert sum(liar.timings) > 1 << 64
    assert 1000 < one._crew.jobs.flight.expects("Hostile") < 1_000_000_000
    assert isinstance(waiting.exception(60), DeadlineExceeded)  # it sleeps
    assert one.run("Identity", {"tensor": 5})["tensor"] == 5


def test_one_that_answers_for_the_next_one_as_well_is_believed_once(one):
    """What runs in a worker can lie about all that it is given from then on: that is no news. But each ends once."""
    _, gate = held(one)
    liar = one.submit("Hostile", params={"how": "the next one's result, too"}, retries=1)
    victim, behind = identities(one, range(2), deadline=2)
    ends = []
    for job in (liar, victim, behind):
        job.add_done_callback(ends.append)
    gate.fill_(1)
    assert liar.result(60)["tensor"] == -liar.id
    assert victim.result(60)["tensor"] == -victim.id
    assert isinstance(behind.exception(60), DeadlineExceeded)  # it sleeps
    assert one.run("Identity", {"tensor": 5})["tensor"] == 5
    assert ends == [liar, victim, behind]


def test_jobs_that_were_quick_once_and_are_slow_now_go_to_all_workers():
    """What a kind of job takes depends on what it is given: who has learned that it is quick has to learn anew."""
    with vw.Fabric(4, **SETTINGS | {"custom_nodes": Path(bench.__file__).parent / "nodes"}) as fabric:
        fabric.wait_ready(60)
        for job in [fabric.submit("BenchBusy", params={"us": 1.0}) for _ in range(300)]:
            job.result(60)
        slow = [fabric.submit("BenchBusy", params={"us": 9000.0}) for _ in range(80)]
        for job in slow:
            job.result(60)
        assert len({job.worker for job in slow[-20:]}) == 4
