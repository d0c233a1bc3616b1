"""One job on one node: whatever it raises has its code, and none gets out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import torch
from one_job import Node, failure, raising

from vortex_worker.errors import (
    Cancelled,
    CUDAError,
    DeadlineExceeded,
    ExecutionError,
    InvalidHandle,
    JobError,
    OutOfArena,
    ValidationError,
)
from vortex_worker.executor.context import JobContext


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")


class Evil(BaseException):
    def __str__(self) -> str:
        raise SystemExit(1)

    __repr__ = __str__


def endless(n: int) -> int:
    return endless(n + 1)


@pytest.mark.parametrize(
    ("body", "kind", "text"),
    [
        (raising(ValueError("bad value")), "ValueError", "bad value"),
        (raising(KeyError("missing")), "KeyError", "'missing'"),
        (raising(AssertionError), "AssertionError", ""),
        (raising(StopIteration(3)), "StopIteration", "3"),
        (raising(GeneratorExit), "GeneratorExit", ""),
        (raising(SystemExit(0)), "SystemExit", "0"),
        (raising(KeyboardInterrupt), "KeyboardInterrupt", ""),
        (raising(asyncio.CancelledError), "CancelledError", ""),
        (raising(OSError(13, "Permission denied")), "PermissionError", "[Errno 13] Permission denied"),
        (raising(RuntimeError("shape mismatch")), "RuntimeError", "shape mismatch"),
        (raising(ExceptionGroup("two", [ValueError(1), OSError(2)])), "ExceptionGroup", "two (2 sub-exceptions)"),
        (raising(ExceptionGroup("one", [ValueError("inner")])), "ValueError", "inner"),
        (raising(Unprintable()), "Unprintable", ""),
        (raising(Evil()), "Evil", ""),
        (lambda i, p: endless(0), "RecursionError", "maximum recursion depth exceeded"),
        (lambda i, p: torch.ones(2) + torch.ones(3), "RuntimeError", "The size of tensor a (2) must match"),
        (lambda i, p: 1 // 0, "ZeroDivisionError", "integer division or modulo by zero"),
        (raising(ValueError("x" * 1_000_000)), "ValueError", "xxx"),
        (raising(UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad")), "UnicodeDecodeError", "'utf-8' codec can't"),
    ],
)
def test_an_exception_becomes_wk_006(body: Callable[..., Any], kind: str, text: str) -> None:
    error = failure(body)
    assert type(error) is ExecutionError
    assert error.message.startswith(f"Node raised {kind}" + (f": {text}" if text else ""))
    assert len(error.message) < 2200
    assert error.details["type"] == kind
    trace = error.details["traceback"]
    assert "executor/runner.py" not in trace
    assert "one_job.py" in trace
    assert len(trace) < 13_000
    assert not error.retryable


def test_the_traceback_begins_at_the_node_and_ends_at_the_error() -> None:
    def inner() -> None:
        raise LookupError("deep down") from ValueError("the cause")

    trace = failure(lambda i, p: inner()).details["traceback"]
    assert "ValueError: the cause" in trace
    assert "in execute" in trace
    assert "raise LookupError" in trace
    assert trace.endswith("LookupError: deep down\n")


def test_a_long_message_leaves_the_frames() -> None:
    trace = failure(raising(ValueError("x" * 1_000_000))).details["traceback"]
    assert "in body" in trace
    assert trace.rstrip().endswith("x")


@pytest.mark.parametrize(
    "error",
    [
        Cancelled("by the caller"),
        DeadlineExceeded("late"),
        OutOfArena("full", {"wanted": "9"}),
        InvalidHandle("bad"),
        ValidationError("this and that", problems=["this", "that"]),
        ExecutionError("of its own", retryable=True),
    ],
)
def test_job_errors_keep_their_code(error: JobError) -> None:
    assert failure(raising(error)) is error
    assert failure(raising(ExceptionGroup("from a TaskGroup", [error]))) is error


def test_cancelled_while_it_runs() -> None:
    node = Node(lambda i, p: [node.context.progress(step, 5) for step in range(5)])
    assert isinstance(failure(node, context=JobContext(cancelled=lambda: True)), Cancelled)
    assert isinstance(failure(node, context=JobContext(deadline=1)), DeadlineExceeded)


class Uninitialised(JobError):
    def __init__(self) -> None:
        pass


class OwnCode(JobError):
    code = "WK-999"


@pytest.mark.parametrize(
    "error",
    [
        Uninitialised(),
        OwnCode("mine"),
        ExecutionError(3),  # type: ignore[arg-type]
        Cancelled("x", {"a": 1}),  # type: ignore[dict-item]
        Cancelled("x", retryable="yes"),  # type: ignore[arg-type]
    ],
)
def test_a_malformed_job_error_is_an_exception_like_any(error: JobError) -> None:
    found = failure(raising(error))
    assert type(found) is ExecutionError
    assert found.details["type"] == type(error).__name__


@pytest.mark.parametrize(
    ("error", "sticky"),
    [
        (RuntimeError("CUDA error: an illegal memory access was encountered"), "true"),
        (RuntimeError("CUDA error: device-side assert triggered"), "true"),
        (RuntimeError("CUDA error: invalid configuration argument"), "false"),
        (RuntimeError("CUDA driver error: invalid argument"), "false"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED"), "false"),
    ],
)
def test_device_errors(error: Exception, sticky: str) -> None:
    found = failure(raising(error))
    assert isinstance(found, CUDAError)
    assert found.details["sticky"] == sticky
    assert str(error) in found.message
    assert "one_job.py" in found.details["traceback"]


def test_accelerator_error() -> None:
    kind = getattr(torch, "AcceleratorError", None)
    if kind is None:
        pytest.skip("torch before 2.8")
    error = kind.__new__(kind)
    error.args = ("CUDA error: unspecified launch failure",)
    found = failure(raising(error))
    assert isinstance(found, CUDAError)
    assert found.details["sticky"] == "true"
