"""Deaths: noticed at once, told by their cause, tried again where that may help, and contained."""

import functools
import os
import signal
from pathlib import Path

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
    late = []

    def flush_late(link, flush):
        if not late and link.unsent:
            late.append(link)
            os.kill(link.process.pid, signal.SIGKILL)
            until(lambda: not link.alive, "the burial of the worker")
        return flush()

    for link in fabric.wait_ready(60)._crew.links():
        link.flush = functools.partial(flush_late, link, link.flush)
    job = fabric.submit("Gate", {"gate": gate, "tensor": 7}, retries=1)
    gate.fill_(1)
    assert job.result(60)["tensor"] == 7
    assert job.attempts == 2


def test_memory_of_the_dead_goes_back_to_the_system_when_its_last_tensor_is_dropped():
    """Found by the soak: it stayed until the region was used again."""
    with vw.Fabric(1, standby=0, **SETTINGS) as fabric:

        def pages():
            return os.fstat(fabric._memory.arena.fd).st_blocks * 512

        held = fabric.run("RandomTensor", params={"shape": [8 << 20], "seed": 3})["tensor"]  # 32 MiB
        os.kill(fabric.workers()[0]["pid"], signal.SIGKILL)
        assert fabric.run("Identity", {"tensor": 7}, retries=1) == {"tensor": 7}
        assert held[-1] != 0
        assert pages() > 32 << 20
        del held
        until(lambda: pages() < 32 << 20, "the return of its pages")


def test_idle_objects_are_dropped_and_the_job_is_run_once_more():
    """The one retry of WK-001, for real: there is room for the object or for the job, not for both."""
    with vw.Fabric(1, standby=0, **SETTINGS | {"memory_limit": 3 << 30}) as fabric:
        kept = fabric.run("MakeLarge", params={"bytes": 3 << 29})["large"]
        pid = fabric.workers()[0]["pid"]
        assert fabric.run("Hog", params={"bytes": 3 << 29}, retries=0) == {"count": 3 << 29}
        assert fabric.workers()[0]["pid"] == pid
        again = fabric.submit("SizeOfLarge", {"large": kept}, retries=1)
        assert again.result(60) == {"count": 3 << 29}  # made again, now that there is room


def test_what_was_made_in_two_steps_is_made_again_in_two():
    with vw.Fabric(1, **SETTINGS) as fabric:
        box = fabric.run("MakeBox", {"tensor": torch.arange(3.0)}, {"value": 2.0})["box"]
        wrapped = fabric.run("WrapBox", {"box": box})["box"]
        del box  # its lineage keeps what it needs
        for _ in range(2):
            opened = fabric.run("OpenBox", {"box": wrapped}, retries=1)
            assert opened["value"].tolist() == [20.0, 30.0, 40.0]
            assert opened["uses"] == 1
            os.kill(opened["pid"], signal.SIGKILL)


def test_a_sampler_that_was_killed_gives_the_same_picture():
    """The model is loaded again, and the sampler run again, with an identical result."""
    digits = Path(__file__).parents[2] / "examples" / "digits"
    with vw.Fabric(1, standby=1, custom_nodes=digits, threads=1) as fabric:
        model = fabric.run("DigitsModelLoader")["model"]
        prompt = fabric.run("DigitsPrompt", params={"text": "42"})
        inputs = {"model": model, "positive": prompt["digits"], "negative": prompt["none"]}
        inputs["latent_image"] = prompt["latent"]
        params = {"seed": 3, "steps": 12, "cfg": 2.5, "sampler_name": "dpmpp_2m", "scheduler": "karras"}
        undisturbed = fabric.run("KSampler", inputs, params)["latent"]["samples"].clone()
        job = fabric.submit("KSampler", inputs, params, retries=1)
        until(lambda: job.progress.step >= 2 or job.done(), "its second step")
        os.kill(pid_of(fabric, job), signal.SIGKILL)
        assert torch.equal(job.result(60)["latent"]["samples"], undisturbed)
        assert job.attempts == 2
