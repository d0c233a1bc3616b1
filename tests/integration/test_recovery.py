"""Deaths: noticed at once, told by their cause, tried again where that may help, and contained."""

import os
import signal

import pytest
import torch
from conftest import SETTINGS, gone, pid_of, started, until

import vortex_worker as vw
from vortex_worker.errors import ObjectLost, OOMSoft, SandboxViolation, WorkerLost


def test_a_job_whose_worker_is_killed_is_run_again(fabric, gate):
    job = started(fabric.submit("Gate", {"gate": gate}))
    victim = pid_of(fabric, job)
    os.kill(victim, signal.SIGKILL)
    until(lambda: job.attempts == 2, "the second attempt")
    gate.fill_(1)
    job.result(60)
    until(lambda: gone(victim), "the end of the first worker")


def test_without_retries_a_death_is_the_jobs_end(fabric, gate):
    job = started(fabric.submit("Gate", {"gate": gate}, retries=0))
    os.kill(pid_of(fabric, job), signal.SIGKILL)
    with pytest.raises(WorkerLost, match="SIGKILL") as caught:
        job.result(60)
    assert caught.value.retryable


@pytest.mark.parametrize(
    ("how", "said"),
    [("segv", "SIGSEGV"), ("abort", "SIGABRT"), ("exit", "status 5"), ("kill", "SIG"), ("close the socket", "lost")],
)
def test_a_poison_job_fails_after_its_retries_and_the_fabric_serves_on(fabric, how, said):
    job = fabric.submit("Die", params={"how": how}, retries=1)
    with pytest.raises((WorkerLost, SandboxViolation)) as caught:
        job.result(60)
    if isinstance(caught.value, WorkerLost):
        assert job.attempts == 2
        assert caught.value.details["attempts"] == "2"
        assert said in str(caught.value) or "SIGKILL" in str(caught.value)
    assert fabric.run("Identity", {"tensor": 7}) == {"tensor": 7}


@pytest.mark.parametrize("how", ["execve", "socket"])
def test_a_denied_system_call_is_a_sandbox_violation_and_not_tried_again(fabric, how):
    job = fabric.submit("Die", params={"how": how}, retries=3)
    with pytest.raises(SandboxViolation, match="execute"):
        job.result(60)
    assert job.attempts == 1


@pytest.mark.parametrize("port", ["left", "right"])
def test_writing_to_an_input_in_place_names_the_port(fabric, port):
    left, right = torch.zeros(64), torch.zeros(64)
    job = fabric.submit("InPlace", {"left": left, "right": right}, {"port": port}, retries=2)
    with pytest.raises(WorkerLost, match=f"input '{port}' in place") as caught:
        job.result(60)
    assert caught.value.details["port"] == port
    assert job.attempts == 1


def test_an_object_is_made_again_when_its_worker_died():
    with vw.Fabric(1, **SETTINGS) as fabric:
        box = fabric.run("MakeBox", {"tensor": torch.arange(3.0)})["box"]
        first = fabric.run("OpenBox", {"box": box})
        (victim,) = (worker["pid"] for worker in fabric.workers())
        os.kill(victim, signal.SIGKILL)
        again = fabric.run("OpenBox", {"box": box})
        assert {k: torch.as_tensor(v).tolist() for k, v in first.items() if k != "pid"} == {
            k: torch.as_tensor(v).tolist() for k, v in again.items() if k != "pid"
        }
        assert fabric.workers()[0]["pid"] != victim


def test_an_object_that_was_dropped_for_want_of_memory_is_made_again():
    with vw.Fabric(1, **SETTINGS | {"memory_limit": 2 << 30}) as fabric:
        box = fabric.run("MakeBox", params={"value": 5.0})["box"]
        assert fabric.run("OpenBox", {"box": box})["uses"] == 1
        with pytest.raises(OOMSoft):
            fabric.run("Hog", params={"bytes": 8 << 30})
        again = fabric.run("OpenBox", {"box": box})
        assert (again["value"].item(), again["uses"]) == (5.0, 1)  # 1: another object than before


def test_results_of_a_dead_worker_stay_readable_until_dropped():
    with vw.Fabric(1, **SETTINGS) as fabric:
        held = fabric.run("RandomTensor", params={"shape": [1000], "seed": 3})["tensor"]
        expected = held.clone()
        os.kill(fabric.workers()[0]["pid"], signal.SIGKILL)
        other = fabric.run("RandomTensor", params={"shape": [1000], "seed": 4})["tensor"]
        assert torch.equal(held, expected)
        assert not torch.equal(other, expected)


def test_an_unknown_object_is_lost(fabric):
    from vortex_worker.supervisor.objects import ObjectRef

    link = next(link for link in fabric.wait_ready(60)._crew.links() if link.active)
    with pytest.raises(ObjectLost):
        fabric.run("OpenBox", {"box": ObjectRef(link, 1 << 40, "BOX")})


def test_a_job_on_its_way_to_a_worker_that_is_gone_by_then_is_run_again(fabric, gate):
    """Found by the soak: it was refused, as if it were too large to send."""
    link = next(link for link in fabric.wait_ready(60)._crew.links() if link.active)
    submit = link.submit

    def submit_late(task):
        os.kill(link.process.pid, signal.SIGKILL)
        until(lambda: not link.alive, "the burial of the worker")
        submit(task)

    link.submit = submit_late
    job = fabric.submit("Gate", {"gate": gate, "tensor": 7}, retries=1)
    gate.fill_(1)
    assert job.result(60)["tensor"] == 7
    assert job.attempts == 2
