"""Many jobs at once: in order, each its own, and all or nothing where one is bad."""

import threading

import pytest
import torch
from conftest import SETTINGS, started, until

import vortex_worker as vw
from vortex_worker.errors import Cancelled, ExecutorNotFound, FabricClosed, OutOfArena, QueueFull
from vortex_worker.supervisor.job import JobState


def test_each_gives_its_own_result_in_order(fabric):
    tensors = [torch.full((4,), float(number)) for number in range(3)]
    calls = [("Scale", {"tensor": tensor}, {"factor": 2.0}) for tensor in tensors]
    calls += [("Identity", {"tensor": "text"}), ["Pid"], ("NoSuchNode", None, None)]
    *scaled, text, pid, unknown = jobs = fabric.submit_many(calls)
    assert [job.op_type for job in jobs] == [call[0] for call in calls]
    for job, tensor in zip(scaled, tensors, strict=True):
        assert torch.equal(job.result(60)["tensor"], tensor * 2)
    assert text.result(60)["tensor"] == "text"
    assert pid.result(60)["pid"] > 0
    assert isinstance(unknown.exception(60), ExecutorNotFound)


def test_no_jobs_are_no_error(fabric):
    assert fabric.submit_many([]) == []
    assert fabric.submit_many(iter(())) == []


@pytest.mark.parametrize(
    ("bad", "error", "said"),
    [
        (("Identity", {"tensor": object()}), TypeError, "call 2: "),
        ((5,), TypeError, "call 2: op_type is 5"),
        ("Identity", TypeError, "call 2: 'Identity': it takes "),
        ((), TypeError, "call 2: "),
        (("Identity", {}, {}, {}), TypeError, "call 2: "),
        (("Identity", 7), TypeError, "call 2: inputs"),
        (("Identity", {"tensor": torch.empty(80 << 20, dtype=torch.uint8)}), OutOfArena, "call 2: "),
    ],
    ids=str,
)
def test_a_bad_one_is_named_by_its_number_and_none_is_queued(fabric, bad, error, said):
    seen = []
    fabric.observe(seen.append)
    good = ("Identity", {"tensor": 1})
    with pytest.raises(error) as caught:
        fabric.submit_many([good, good, bad, good])
    assert getattr(caught.value, "message", str(caught.value)).startswith(said)
    assert seen == []
    assert fabric.run("Identity", {"tensor": 1})["tensor"] == 1


def test_options_are_each_one_s(fabric):
    with pytest.raises(ValueError, match="call 0: deadline"):
        fabric.submit_many([("Identity", {"tensor": 1})], deadline=-1)
    jobs = fabric.submit_many([("Gate", {"gate": fabric.tensor([0])})] * 3, deadline=0.05)
    assert {type(job.exception(60)).__name__ for job in jobs} == {"DeadlineExceeded"}


@pytest.fixture
def narrow():
    """A fabric of one worker and four places, and a job that keeps it busy until its gate is opened."""
    with vw.Fabric(1, standby=0, queue=4, **SETTINGS) as fabric:
        gate = fabric.wait_ready(60).tensor([0])
        started(fabric.submit("Gate", {"gate": gate}))
        yield fabric, gate
        gate.fill_(1)


def test_more_than_the_queue_takes_wait_for_room(narrow):
    fabric, gate = narrow
    threading.Timer(0.05, gate.fill_, [1]).start()
    jobs = fabric.submit_many([("Identity", {"tensor": number}) for number in range(50)])
    assert [job.result(60)["tensor"] for job in jobs] == list(range(50))


@pytest.mark.parametrize("options", [{"block": False}, {"timeout": 0.02}])
def test_where_there_stays_no_room_none_is_left_behind(narrow, options):
    fabric, gate = narrow
    seen = []
    fabric.observe(seen.append)
    with pytest.raises(QueueFull):
        fabric.submit_many([("Identity", {"tensor": number}) for number in range(9)], **options)
    assert len(seen) == 9
    assert {type(job.exception(60)) for job in seen} == {Cancelled, QueueFull}
    assert {job.attempts for job in seen} == {0}
    (job,) = fabric.submit_many([("Identity", {"tensor": 1})], block=False)
    gate.fill_(1)
    assert job.result(60)["tensor"] == 1


def test_what_an_observer_raises_ends_all(fabric):
    jobs = []

    def observe(job):
        jobs.append(job)
        if len(jobs) == 2:
            raise RuntimeError("an observer's own bug")

    fabric.observe(observe)
    with pytest.raises(RuntimeError, match="own bug"):
        fabric.submit_many([("Identity", {"tensor": 1})] * 3)
    assert {job.state for job in jobs} == {JobState.FAILED}
    fabric._intake.observers = ()


def test_a_closed_fabric_takes_none():
    with vw.Fabric(1, standby=0, **SETTINGS) as fabric:
        pass
    with pytest.raises(FabricClosed):
        fabric.submit_many([("Identity", {"tensor": 1})])


def test_several_threads_submit_many(fabric):
    wrong = []

    def client(base):
        jobs = fabric.submit_many([("Identity", {"tensor": base + number}) for number in range(300)])
        wrong.extend(job for number, job in enumerate(jobs) if job.result(120)["tensor"] != base + number)

    threads = [threading.Thread(target=client, args=(1000 * number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    until(lambda: not any(thread.is_alive() for thread in threads), "their ends")
    assert wrong == []
