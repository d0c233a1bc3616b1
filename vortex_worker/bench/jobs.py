"""``job.*``: a no-op job from call to result, through a sandboxed worker and back."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vortex_worker.bench.measure import Result, Skipped, Target, each, median, p99, settle

if TYPE_CHECKING:
    from vortex_worker.supervisor.job import Job


def pingpong(count: int) -> float:
    """Median round trip of the C reference, s: two processes, one send and one recv each way."""
    program = Path(__file__).with_name("pingpong")
    done = subprocess.run([program, "--count", str(count), "--size", "64"], capture_output=True, check=True)
    return float(json.loads(done.stdout)["median_ns"]) / 1e9


def doorbell(count: int) -> float:
    """The same through shared memory, on two CPUs, s."""
    program = Path(__file__).with_name("pingpong")
    arguments = ["--count", str(count), "--size", "64", "--pin", "apart", "--over", "memory"]
    done = subprocess.run([program, *arguments], capture_output=True, check=True)
    return float(json.loads(done.stdout)["median_ns"]) / 1e9


def job_doorbell(quick: bool) -> Result:
    """What a ring of jobs in shared memory would make of the socket's part of a job. C alone: there is none yet."""
    if len(os.sched_getaffinity(0)) < 2:
        raise Skipped("it takes two CPUs")
    count = 1000 if quick else 10_000
    sockets, bells = [], []
    for _ in range(5):
        sockets.append(pingpong(count))
        bells.append(doorbell(count))
    return Result(
        "frame there and back through shared memory, C alone", "µs", median(bells) * 1e6, max(bells) * 1e6,
        "C ping-pong on a Unix socket, two processes", median(sockets) * 1e6, Target("median", 2.0, 1.0),
    )  # fmt: skip


def _identity(fabric: Any, tensor: Any) -> Any:
    return fabric.run("Identity", {"tensor": tensor})["tensor"]


def job_roundtrip(quick: bool) -> Result:
    """A 4 KiB tensor goes in and comes out."""
    import torch

    from vortex_worker.supervisor.fabric import Fabric

    count = 1000 if quick else 10_000
    with Fabric(1) as fabric:
        tensor = fabric.tensor(torch.arange(1024.0))
        assert torch.equal(_identity(fabric, tensor), tensor)
        settle()
        before = pingpong(count)
        samples = each(lambda: _identity(fabric, tensor), count)
        after = pingpong(count)
    return Result(
        "no-op job, 4 KiB tensor in and out, API to API", "µs", median(samples) * 1e6, p99(samples) * 1e6,
        "C ping-pong on a Unix socket, two processes", (before + after) / 2 * 1e6, Target("ratio", 3.0, 1.4),
    )  # fmt: skip


def job_batch(quick: bool) -> Result:
    """A thousand such jobs at once, beside one after the other."""
    import torch

    from vortex_worker.supervisor.fabric import Fabric

    jobs, rounds = 1000, 5 if quick else 20
    blocking: list[float] = []
    batched: list[float] = []
    submitted: list[float] = []

    def timed(submit: Callable[[], list[Job]]) -> float:
        begun = time.perf_counter()
        shapes = {job.result(60)["tensor"].shape for job in submit()}
        took = time.perf_counter() - begun
        assert shapes == {(1024,)}
        return took / jobs

    with Fabric(1) as fabric:
        call = ("Identity", {"tensor": fabric.tensor(torch.arange(1024.0))})
        fabric.run(*call)
        settle()
        for turn in range(1 + rounds):
            alone = each(lambda: fabric.run(*call), jobs)
            at_once = timed(lambda: fabric.submit_many([call] * jobs))
            by_and_by = timed(lambda: [fabric.submit(*call) for _ in range(jobs)])
            if turn:  # the first warms up
                blocking += alone
                batched.append(at_once)
                submitted.append(by_and_by)
    return Result(
        "no-op job of 1,000 submitted at once, through one worker", "µs", median(batched) * 1e6, p99(batched) * 1e6,
        "one after the other, waiting for each", median(blocking) * 1e6, Target("ratio", 1.0, 0.7),
        {"µs a job, submitted one by one": median(submitted) * 1e6},
    )  # fmt: skip


def job_tensor64m(quick: bool) -> Result:
    """The same with 64 MiB: size must not matter, since nothing is copied."""
    import torch

    from vortex_worker.supervisor.fabric import Fabric

    rounds = 400 if quick else 2000
    with Fabric(1) as fabric:
        small = fabric.tensor(torch.arange(1024.0))
        large = fabric.empty((16 << 20,), torch.float32).fill_(7.0)
        out = _identity(fabric, large)
        assert out.data_ptr() == large.data_ptr()
        assert out.numel() * out.element_size() == 64 << 20
        large_samples: list[float] = []
        small_samples: list[float] = []
        settle()
        for _ in range(rounds):  # by turns: whether both sides share a CPU changes meanwhile
            for tensor, into in ((large, large_samples), (small, small_samples)):
                begun = time.perf_counter()
                _identity(fabric, tensor)
                into.append(time.perf_counter() - begun)
    return Result(
        "no-op job, 64 MiB tensor in and out", "µs", median(large_samples) * 1e6, p99(large_samples) * 1e6,
        "the same with 4 KiB", median(small_samples) * 1e6, Target("ratio", 1.2, 1.1),
    )  # fmt: skip
