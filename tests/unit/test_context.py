"""What a running node is told and may tell: progress, cancellation, deadline, memory."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import pytest
import torch

from vortex_worker.errors import Cancelled, DeadlineExceeded, OutOfArena
from vortex_worker.executor.context import JobContext


def test_progress_is_reported_and_checked() -> None:
    seen: list[tuple[int, int, str]] = []
    context = JobContext(7, report=lambda *report: seen.append(report))
    context.progress(0, 2)
    context.progress(1, 2, "half")
    context.progress(torch.tensor(2), 2)  # type: ignore[arg-type]
    context.progress(0, 0)
    context.progress((1 << 32) - 1, (1 << 32) - 1)
    assert seen == [(0, 2, ""), (1, 2, "half"), (2, 2, ""), (0, 0, ""), ((1 << 32) - 1, (1 << 32) - 1, "")]
    assert all(type(report[0]) is int for report in seen)
    assert context.job_id == 7


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((3, 2), ValueError),
        ((-1, 2), ValueError),
        ((0, 1 << 32), ValueError),
        ((1, -1), ValueError),
        ((0.5, 2), TypeError),
        ((1, "2"), TypeError),
        ((None, 2), TypeError),
        ((1, 2, 3), TypeError),
        ((1, 2, None), TypeError),
    ],
)
def test_bad_progress(arguments: tuple[Any, ...], error: type[Exception]) -> None:
    seen: list[object] = []
    context = JobContext(report=lambda *report: seen.append(report))
    with pytest.raises(error):
        context.progress(*arguments)
    assert not seen


def test_cancellation() -> None:
    asked = False
    context = JobContext(cancelled=lambda: asked)
    context.check()
    assert not context.cancelled
    asked = True
    assert context.cancelled
    with pytest.raises(Cancelled) as caught:
        context.check()
    assert caught.value.code == "WK-007"
    reports: list[object] = []
    context = JobContext(cancelled=lambda: True, report=lambda *report: reports.append(report))
    with pytest.raises(Cancelled):
        context.progress(1, 2)
    assert reports == [(1, 2, "")]


def test_deadline_is_monotonic_time() -> None:
    JobContext(deadline=0).check()
    JobContext(deadline=time.monotonic_ns() + 10**12).check()
    with pytest.raises(DeadlineExceeded) as caught:
        JobContext(deadline=time.monotonic_ns() - 1).progress(0, 1)
    assert caught.value.code == "WK-008"
    context = JobContext(deadline=time.monotonic_ns() + 5_000_000)
    context.check()
    time.sleep(0.006)
    with pytest.raises(DeadlineExceeded):
        context.check()


def test_empty_asks_the_lease() -> None:
    asked: list[object] = []

    def allocate(shape: Any, dtype: Any) -> torch.Tensor:
        asked.append((shape, dtype))
        return torch.empty(shape, dtype=dtype)

    context = JobContext(allocate=allocate)
    assert context.empty([2, 3]).shape == (2, 3)
    assert context.empty(torch.Size((4,)), torch.bfloat16).dtype is torch.bfloat16
    assert asked == [((2, 3), torch.float32), ((4,), torch.bfloat16)]

    def full(shape: Any, dtype: Any) -> torch.Tensor:
        raise OutOfArena("full")

    with pytest.raises(OutOfArena):
        JobContext(allocate=full).empty((1,))


def test_without_a_worker() -> None:
    context = JobContext()
    out = context.empty((2, 2))
    assert (out.shape, out.dtype, out.device.type) == ((2, 2), torch.float32, "cpu")
    assert context.device == torch.device("cpu")
    assert not context.cancelled
    context.progress(1, 1, "done")


def test_device() -> None:
    assert JobContext(device=torch.device("meta")).device == torch.device("meta")


def test_needs_no_torch() -> None:
    program = "import sys, vortex_worker.executor.context, vortex_worker.executor.runner, vortex_worker.device\n"
    program += "vortex_worker.executor.context.JobContext().progress(1, 2)\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
