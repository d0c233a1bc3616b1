"""The fabric does what it is for: values through unchanged, tensors without a copy, jobs side by side."""

import asyncio
import gc
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import NODES, SETTINGS, pid_of, started, until

import vortex_worker as vw
from vortex_worker.errors import (
    Cancelled,
    ConfigError,
    DeadlineExceeded,
    ExecutionError,
    FabricClosed,
    LaunchError,
    QueueFull,
)
from vortex_worker.supervisor.job import JobState

# ------------------------------------------------------------------ values


@pytest.mark.parametrize(
    "value",
    [
        None, True, False, 0, -1, 2**63 - 1, -(2**63), 2**64 - 1, 1.5, float("inf"), "", "text ☃", b"", b"\0\xff",
        [], {}, [1, [2.5, "x", None]], {"a": {"b": [True, b"z"]}, "": 0},
    ],
    ids=repr,
)  # fmt: skip
def test_plain_values_go_through_unchanged(fabric, value):
    out = fabric.run("Identity", {"tensor": value})["tensor"]
    assert out == value
    assert type(out) is type(value)


def test_nan_goes_through(fabric):
    out = fabric.run("Identity", {"tensor": float("nan")})["tensor"]
    assert out != out


DTYPES = [
    torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int8, torch.int16, torch.int32,
    torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn,
    torch.float8_e5m2, torch.complex64, torch.complex128,
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_goes_through_bit_for_bit(fabric, dtype):
    bits = torch.arange(6 * 16, dtype=torch.uint8)
    if dtype is torch.bool:
        bits = bits % 2
    tensor = bits.view(dtype).reshape(6, -1)
    out = fabric.run("Identity", {"tensor": tensor})["tensor"]
    assert out.dtype is dtype
    assert out.shape == tensor.shape
    assert torch.equal(out.view(torch.uint8), tensor.view(torch.uint8))


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor(3.0),
        torch.empty(0),
        torch.empty(2, 0, 3),
        torch.arange(24.0).reshape(2, 3, 4).permute(2, 0, 1),
        torch.arange(24.0)[::3],
        torch.arange(3.0).expand(5, 3),
        torch.arange(64.0)[1:],
        torch.arange(6.0, requires_grad=True),
        torch.nn.Parameter(torch.ones(3)),
        torch.arange(4.0).reshape([1] * 20 + [4]),
    ],
    ids=["scalar", "empty", "empty-3d", "permuted", "strided", "expanded", "offset", "grad", "parameter", "21-d"],
)
def test_every_form_of_tensor_goes_through(fabric, tensor):
    out = fabric.run("Identity", {"tensor": tensor})["tensor"]
    assert out.shape == tensor.shape
    assert torch.equal(out, tensor.detach())
    assert not out.requires_grad


def test_arrays_and_nested_tensors_go_through(fabric):
    array = np.arange(12, dtype=np.int32).reshape(3, 4)
    given = {"array": array, "flipped": array[::-1], "list": [torch.ones(2), {"x": torch.zeros(1)}], "n": 1}
    out = fabric.run("Identity", {"tensor": given})["tensor"]
    assert torch.equal(out["array"], torch.from_numpy(array))
    assert torch.equal(out["flipped"], torch.from_numpy(array[::-1].copy()))
    assert torch.equal(out["list"][0], torch.ones(2))
    assert torch.equal(out["list"][1]["x"], torch.zeros(1))
    assert out["n"] == 1


# ----------------------------------------------------------------- no copy


def test_identity_returns_the_very_memory_of_its_input(fabric):
    mine = fabric.empty((16, 16), torch.float32)
    mine.copy_(torch.arange(256.0).reshape(16, 16))
    out = fabric.run("Identity", {"tensor": mine})["tensor"]
    assert out.data_ptr() == mine.data_ptr()
    mine[0, 0] = -5
    assert out[0, 0] == -5


def test_an_output_goes_into_the_next_job_without_a_copy(fabric):
    first = fabric.run("RandomTensor", params={"shape": [64, 64], "seed": 1})["tensor"]
    second = fabric.run("Identity", {"tensor": first})["tensor"]
    assert second.data_ptr() == first.data_ptr()
    third = fabric.run("Identity", {"tensor": {"deep": [second[8:]]}})["tensor"]["deep"][0]
    assert third.data_ptr() == first[8:].data_ptr()


def test_a_client_tensor_outside_the_arena_is_copied_once_at_submit(fabric):
    mine = torch.ones(8)
    job = fabric.submit("Identity", {"tensor": mine})
    mine.zero_()
    assert torch.equal(job.result()["tensor"], torch.ones(8))


def test_a_running_node_sees_what_is_written_into_its_input(fabric, gate):
    job = started(fabric.submit("Gate", {"gate": gate}))
    assert not job.done()
    gate.fill_(1)
    assert job.result()["tensor"] is None


def test_views_of_an_input_come_back_as_views(fabric):
    mine = fabric.tensor(torch.arange(32.0).reshape(8, 4))
    out = fabric.run("Views", {"tensor": mine})
    assert out["half"].data_ptr() == out["transposed"].data_ptr() == mine.data_ptr()
    assert torch.equal(out["half"], mine[:4])
    assert torch.equal(out["transposed"], mine.T)
    assert out["nested"]["list"][0].data_ptr() == mine.data_ptr()
    assert out["nested"]["list"][1:] == [1, None]


def test_context_empty_and_private_outputs_give_the_same(fabric):
    direct = fabric.run("Fill", params={"count": 1000, "value": 2.5})["tensor"]
    copied = fabric.run("Fill", params={"count": 1000, "value": 2.5, "copy": True})["tensor"]
    assert torch.equal(direct, torch.full((1000,), 2.5))
    assert torch.equal(direct, copied)
    assert direct.data_ptr() != copied.data_ptr()


def test_memory_comes_back_when_results_are_dropped(single):
    # 64 MiB of lease, 48 MiB a result: each must be gone before the next.
    for value in range(6):
        out = single.run("Fill", params={"count": 12 << 20, "value": float(value)})["tensor"]
        assert out[-1] == value
        del out
        gc.collect()


def test_client_memory_comes_back_too(single):
    for _ in range(6):
        tensor = single.empty((12 << 20,), torch.float32)
        tensor[-1] = 4
        assert single.run("Identity", {"tensor": tensor[-1:]})["tensor"].item() == 4
        del tensor
        gc.collect()


def test_a_result_is_not_overwritten_while_it_is_held(single):
    kept = [single.run("Fill", params={"count": 1 << 16, "value": float(v)})["tensor"] for v in range(40)]
    for value, tensor in enumerate(kept):
        assert torch.equal(tensor, torch.full((1 << 16,), float(value)))


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


# ---------------------------------------------------- progress, cancel, deadline


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


# ----------------------------------------------------------------- workers


def status_of(pid):
    fields = {}
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        key, _, value = line.partition(":")
        fields[key] = value.strip()
    return fields


def test_every_thread_of_every_worker_is_sandboxed_as_reported(fabric):
    fabric.wait_ready(60)
    own = int(status_of("self")["Seccomp_filters"])
    for worker in fabric.workers():
        sandbox = worker["sandbox"]
        assert sandbox["enforced"] is True
        assert sandbox["policy"] == "execute"
        assert {"landlock", "seccomp-bootstrap", "seccomp-execute", "canary", "no_new_privs", "rlimits"} <= set(
            sandbox["layers"]
        )
        assert len(bytes.fromhex(sandbox["filter_sha256"])) == 32
        tasks = list(Path(f"/proc/{worker['pid']}/task").iterdir())
        assert tasks
        for task in tasks:
            fields = status_of(f"{worker['pid']}/task/{task.name}")
            assert fields["Seccomp"] == "2"
            assert int(fields["Seccomp_filters"]) - own == sandbox["kernel"]["filters"] >= 2
            assert fields["NoNewPrivs"] == "1"
            assert int(fields["CapEff"], 16) == int(fields["CapPrm"], 16) == int(fields["CapBnd"], 16) == 0 or (
                int(fields["CapEff"], 16) == int(fields["CapPrm"], 16) == 0
            )


def test_a_worker_has_no_descriptor_beyond_its_socket_and_log(fabric):
    for worker in fabric.wait_ready(60).workers():
        kinds = sorted(
            link.readlink().name.partition(":")[0] if ":" in link.readlink().name else str(link.readlink())
            for link in Path(f"/proc/{worker['pid']}/fd").iterdir()
        )
        assert kinds.count("socket") == 1, kinds
        assert not any("memfd" in kind or "shm" in kind for kind in kinds), kinds
        # Standard input, output and error; the control socket; the heartbeat's stop signal.
        assert len(kinds) == 5, kinds


def test_a_worker_sees_nothing_of_the_supervisors_secrets(monkeypatch):
    monkeypatch.setenv("VERY_SECRET_TOKEN", "hunter2")
    with vw.Fabric(1, **SETTINGS) as fabric:
        pid = fabric.wait_ready(60).workers()[0]["pid"]
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes()
        except PermissionError:  # it is not dumpable; then nobody else can look, either
            environment = b""
        assert b"hunter2" not in environment
        assert fabric.run("Identity", {"tensor": 1})["tensor"] == 1


def test_nodes_lists_built_in_and_custom_nodes(fabric):
    nodes = fabric.nodes()
    assert nodes["Identity"].source == "builtin"
    assert nodes["Gate"].source.endswith("well_behaved")
    assert [port.name for port in nodes["OpenBox"].inputs] == ["box", "other", "gate"]
    steps = nodes["Steps"].params[0]
    assert (steps.type, steps.minimum, steps.maximum) == ("INT", 1, 1000)
    assert nodes["InPlaceOnCopy"].mutates_inputs is True


def test_workers_report_what_they_do(fabric, gate):
    job = started(fabric.submit("Gate", {"gate": gate}))
    worker = next(worker for worker in fabric.workers() if worker["job"] == job.id)
    assert worker["id"] == job.worker
    before = worker["jobs_done"]
    gate.fill_(1)
    assert job.result()["pid"] == worker["pid"]
    after = next(w for w in fabric.workers() if w["id"] == worker["id"])
    assert (after["job"], after["jobs_done"], after["stage"]) == (None, before + 1, "ready")


def test_the_strict_policy_runs_jobs_with_no_file_at_all():
    with vw.Fabric(1, threads=1, policy="strict") as fabric:
        out = fabric.run("Scale", {"tensor": torch.ones(4)}, {"factor": 3.0})["tensor"]
        assert torch.equal(out, torch.full((4,), 3.0))
        assert fabric.workers()[0]["sandbox"]["policy"] == "strict"
        latent, size = {"samples": torch.ones(1, 4, 8, 8)}, {"width": 128, "height": 128, "upscale_method": "bislerp"}
        larger = fabric.run("LatentUpscale", {"samples": latent}, size)["latent"]
        laid = fabric.run("LatentCompositeMasked", {"destination": larger, "source": latent}, {"x": 8})["latent"]
        torch.testing.assert_close(laid["samples"], torch.ones(1, 4, 16, 16))


# --------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"workers": 0}, "workers"),
        ({"workers": 257}, "workers"),
        ({"workers": True}, "workers"),
        ({"workers": "2"}, "workers"),
        ({"queue": 0}, "queue"),
        ({"lease_size": 1}, "lease_size"),
        ({"client_size": 1.5}, "client_size"),
        ({"log_level": "loud"}, "log_level"),
        ({"custom_nodes": NODES / "nowhere"}, "custom_nodes"),
        ({"models": [NODES / "well_behaved.py"]}, "models"),
        ({"max_frame": 1}, "max_frame"),
        ({"max_frame": 1 << 40}, "max_frame"),
        ({"heartbeat_ms": 0}, "heartbeat_ms"),
        ({"threads": -1}, "threads"),
        ({"memory_limit": -1}, "memory_limit"),
        ({"grace": -1.0}, "grace"),
        ({"start_timeout": 0}, "start_timeout"),
        ({"device": "abacus"}, "device is 'abacus': it takes auto, cpu, cuda, cuda:N or mps"),
        ({"device": "cuda:"}, "device is 'cuda:'"),
        ({"device": None}, "device is None"),
        (
            {"policy": "no-such-policy"},
            "policy is 'no-such-policy': it takes execute, strict, cuda or the path of a TOML file",
        ),
        ({"policy": "./no-such.toml"}, "policy ./no-such.toml"),
        ({"policy": 5}, "policy is 5: it takes execute, strict, cuda or the path of a TOML file"),
        ({"models": 5}, "models is 5: it takes paths of folders"),
        ({"models": "no\0folder"}, "models is"),
        ({"models": NODES / "nowhere"}, "models is .*nowhere.*folders that exist"),
    ],
    ids=lambda value: str(value)[-40:],
)
def test_a_bad_setting_is_refused_by_name_before_anything_starts(settings, named):
    with pytest.raises(ConfigError, match=named):
        vw.Fabric(**settings).close()


@pytest.mark.parametrize("settings", [{"device": "cuda:99"}], ids=str)
def test_a_setting_that_only_a_worker_can_judge_ends_in_a_launch_error(settings):
    value = next(iter(settings.values()))
    with vw.Fabric(1, **settings) as fabric:
        with pytest.raises(LaunchError, match=value):
            fabric.wait_ready(60)
        with pytest.raises(LaunchError, match=value):
            fabric.run("Identity", {"tensor": 1})
        assert fabric.workers() == []


# --------------------------------------------------------------------- end


def test_closing_ends_jobs_and_refuses_more_and_may_be_repeated():
    fabric = vw.Fabric(1, **SETTINGS)
    gate = fabric.tensor([0])
    running = started(fabric.submit("Gate", {"gate": gate}))
    queued = fabric.submit("Identity", {"tensor": 1})
    fabric.close()
    fabric.close()
    for job in (running, queued):
        with pytest.raises(FabricClosed):
            job.result(timeout=0)
    with pytest.raises(FabricClosed):
        fabric.submit("Identity", {"tensor": 1})
    with pytest.raises(FabricClosed):
        fabric.wait_ready()
    assert fabric.workers() == []


def test_tensors_outlive_the_fabric():
    with vw.Fabric(1, **SETTINGS) as fabric:
        mine = fabric.tensor([1.0, 2.0])
        out = fabric.run("Scale", {"tensor": torch.arange(1000.0)}, {"factor": 2.0})["tensor"]
        unread = fabric.submit("Scale", {"tensor": torch.ones(3)}, {"factor": 7.0})
        unread.wait()
    assert torch.equal(out, torch.arange(1000.0) * 2)
    out += 1
    assert out[3] == 7
    assert torch.equal(mine, torch.tensor([1.0, 2.0]))
    assert torch.equal(unread.result()["tensor"], torch.full((3,), 7.0))


def test_making_tensors_after_the_end_is_refused():
    fabric = vw.Fabric(1, threads=1)
    fabric.close()
    for make in (lambda: fabric.empty((4,)), lambda: fabric.tensor([1.0])):
        with pytest.raises(FabricClosed):
            make()
