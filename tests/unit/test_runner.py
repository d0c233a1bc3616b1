"""One job on one node: every way it can go wrong has its code, and none gets out."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch

from vortex_worker import device
from vortex_worker.errors import (
    JOB_ERRORS,
    Cancelled,
    CUDAError,
    DeadlineExceeded,
    ExecutionError,
    InvalidHandle,
    JobError,
    OOMSoft,
    OutOfArena,
    ValidationError,
)
from vortex_worker.executor.base import AbstractExecutor
from vortex_worker.executor.context import JobContext
from vortex_worker.executor.declaration import spec_of
from vortex_worker.executor.ports import Param, Port
from vortex_worker.executor.runner import Done, run

CPU_OOM = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: "
    "you tried to allocate 9 bytes. Error code 12 (Cannot allocate memory)"
)


class Node(AbstractExecutor):
    """Does what the test says."""

    op_type = "Node"
    input_ports = (Port("x", "*", optional=True), Port("latent", "LATENT", optional=True))
    output_ports = (Port("value", "*"),)
    params = (Param("n", "INT", default=1, minimum=0), Param("items", "LIST", default=[1]))

    def __init__(self, body: Callable[..., Any], check: Callable[..., Any] | None = None) -> None:
        self.body = body
        self.check = check

    def validate(self, inputs: dict[str, Any], params: dict[str, Any]) -> Any:
        return self.check(inputs, params) if self.check else []

    def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> dict[str, Any]:
        return {"value": self.body(inputs, params)}


class Writer(Node):
    op_type = "Writer"
    mutates_inputs = True


def go(
    node: AbstractExecutor | Callable[..., Any],
    inputs: dict[str, Any] | None = None,
    params: dict[str, Any] | None = None,
    *,
    context: JobContext | None = None,
    save: Callable[[dict[str, Any]], Any] = lambda outputs: outputs,
    free_memory: Callable[[], object] = lambda: None,
) -> Done:
    executor = node if isinstance(node, AbstractExecutor) else Node(node)
    spec = spec_of(type(executor), "test")
    return run(executor, spec, inputs or {}, params or {}, context or JobContext(), save=save, free_memory=free_memory)


def failure(node: AbstractExecutor | Callable[..., Any], *arguments: Any, **keywords: Any) -> JobError:
    with pytest.raises(JobError) as caught:
        go(node, *arguments, **keywords)
    error = caught.value
    assert type(error).code in JOB_ERRORS
    assert all(isinstance(text, str) for pair in error.details.items() for text in pair)
    return error


def raising(error: BaseException | type[BaseException]) -> Callable[..., Any]:
    def body(inputs: dict[str, Any], params: dict[str, Any]) -> Any:
        raise error

    return body


# ------------------------------------------------------------------ the path


def test_runs_and_saves() -> None:
    x = torch.arange(4.0)
    done = go(lambda i, p: i["x"] * p["n"], {"x": x}, {"n": 3}, save=lambda outputs: outputs["value"].tolist())
    assert done.saved == [0.0, 3.0, 6.0, 9.0]
    assert done.execute_ns > 0
    assert done.save_ns > 0


def test_inputs_are_not_copied() -> None:
    x = torch.zeros(3)
    assert go(lambda i, p: i["x"], {"x": x}).saved["value"].data_ptr() == x.data_ptr()


def test_runs_in_inference_mode() -> None:
    weight = torch.ones(2, requires_grad=True)
    modes: list[bool] = []

    def save(outputs: dict[str, Any]) -> Any:
        modes.append(torch.is_inference_mode_enabled())
        return outputs["value"]

    assert not go(lambda i, p: weight * 2, save=save).saved.requires_grad
    assert modes == [True]
    assert not torch.is_inference_mode_enabled()


def test_the_context_is_the_job_s() -> None:
    node = Node(lambda i, p: node.context.job_id, lambda i, p: [] if node.context.job_id == 42 else ["no context"])
    assert go(node, context=JobContext(42)).saved == {"value": 42}


def test_validation_comes_first() -> None:
    def never(*arguments: Any) -> Any:
        raise AssertionError

    error = failure(Node(never, never), {"y": 1}, {"n": -1, "m": 2}, save=never)
    assert isinstance(error, ValidationError)
    assert len(error.problems) == 3


def test_private_copies_for_nodes_that_write() -> None:
    x, samples = torch.zeros(2), torch.zeros(1, 4, 2, 2).expand(3, 4, 2, 2)
    model = object()
    inputs = {"x": [x, {"deep": x, "model": model}], "latent": {"samples": samples}}

    def body(given: dict[str, Any], params: dict[str, Any]) -> Any:
        given["x"][0].add_(1)
        given["x"][1]["deep"].add_(2)
        given["latent"]["samples"].add_(3)
        assert given["x"][1]["model"] is model
        given["x"].append(4)
        given.clear()
        return None

    go(Writer(body), inputs)
    assert not x.any()
    assert not samples.any()
    assert len(inputs["x"]) == 2


def test_what_a_node_does_to_its_dicts_stays_with_it() -> None:
    def body(inputs: dict[str, Any], params: dict[str, Any]) -> Any:
        inputs.clear()
        params["items"].append(2)
        return len(params["items"])

    def check(inputs: dict[str, Any], params: dict[str, Any]) -> list[str]:
        inputs["x"] = params["n"] = None
        return []

    node = Node(body, check)
    assert [go(node, {"x": 1}).saved["value"] for _ in range(2)] == [2, 2]


# ---------------------------------------------------------------- validate()


def test_a_node_s_own_problems() -> None:
    error = failure(Node(lambda i, p: 1, lambda i, p: ["'x' is odd", "'n' is even"]))
    assert isinstance(error, ValidationError)
    assert error.problems == ["'x' is odd", "'n' is even"]
    assert error.message == "Node: 'x' is odd; 'n' is even"
    assert go(Node(lambda i, p: 1, lambda i, p: ())).saved == {"value": 1}


def test_what_a_node_says_is_one_bounded_line() -> None:
    error = failure(Node(lambda i, p: 1, lambda i, p: ["no\nerror:\x1b[2J\udc80", *["x" * 5000] * 200]))
    assert isinstance(error, ValidationError)
    assert error.problems[0] == r"no\nerror:\x1b[2J\udc80"
    assert error.problems[1] == "x" * 1000 + "…"
    assert error.problems[50:] == ["and 151 more"]
    assert error.message.isprintable()


@pytest.mark.parametrize("nonsense", [None, "problem", 3, [1], [None], True, {"a": "b"}, [b"x"]])
def test_validate_returns_nonsense(nonsense: Any) -> None:
    error = failure(Node(lambda i, p: 1, lambda i, p: nonsense))
    assert isinstance(error, ExecutionError)
    assert "Node.validate returned a" in error.message
    assert "it must return a list of strings" in error.message


@pytest.mark.parametrize("kind", [ValueError, SystemExit, KeyboardInterrupt])
def test_validate_raises(kind: type[BaseException]) -> None:
    def check(inputs: dict[str, Any], params: dict[str, Any]) -> Any:
        raise kind("odd")

    error = failure(Node(lambda i, p: 1, check))
    assert isinstance(error, ExecutionError)
    assert error.message == f"Node.validate raised {kind.__name__}: odd"
    assert "in check" in error.details["traceback"]


# ------------------------------------------------------------ what nodes raise


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
    assert "test_runner.py" in trace
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


# ------------------------------------------------------------------- outputs


@pytest.mark.parametrize("returned", [None, [], 3, {}, {"value": 1, "more": 2}, torch.zeros(1)])
def test_bad_returns(returned: Any) -> None:
    class Returns(Node):
        def execute(self, inputs: dict[str, Any], params: dict[str, Any]) -> Any:
            return returned

    error = failure(Returns(lambda i, p: 0))
    assert isinstance(error, ExecutionError)
    assert error.message.startswith("Node returned ")


def test_save_fails() -> None:
    def save(outputs: dict[str, Any]) -> Any:
        raise OutOfArena("the lease is full")

    calls: list[int] = []
    error = failure(lambda i, p: calls.append(1), save=save)
    assert isinstance(error, OutOfArena)
    assert calls == [1]  # the allocator of the arena has no cache to empty: no second try

    def bug(outputs: dict[str, Any]) -> Any:
        raise TypeError("can't travel")

    assert failure(lambda i, p: 1, save=bug).message == "Node raised TypeError: can't travel"


# ------------------------------------------------------------- out of memory


OOMS = [
    MemoryError(),
    RuntimeError(CPU_OOM),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
    OSError(12, "Cannot allocate memory"),
    ExceptionGroup("threads", [MemoryError()]),
]


@pytest.mark.parametrize("error", OOMS, ids=lambda error: f"{type(error).__name__} {error!s:.20}")
def test_out_of_memory_once(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(device, "empty_cache", lambda: calls.append("cache"))

    def body(inputs: dict[str, Any], params: dict[str, Any]) -> Any:
        calls.append("execute")
        if calls.count("execute") == 1:
            raise error
        return 5

    done = go(body, free_memory=lambda: calls.append("free"))
    assert done.saved == {"value": 5}
    assert calls == ["execute", "free", "cache", "execute"]


@pytest.mark.parametrize("error", OOMS, ids=lambda error: f"{type(error).__name__} {error!s:.20}")
def test_out_of_memory_twice(error: Exception) -> None:
    calls: list[str] = []

    def body(inputs: dict[str, Any], params: dict[str, Any]) -> Any:
        calls.append("execute")
        raise error

    found = failure(body, free_memory=lambda: calls.append("free"))
    assert isinstance(found, OOMSoft)
    assert found.retryable
    assert found.message.startswith("Node: out of memory, twice")
    assert calls == ["execute", "free", "execute"]


def test_out_of_memory_for_real() -> None:
    error = failure(lambda i, p: torch.empty(1 << 55))
    assert isinstance(error, OOMSoft)
    assert "can't allocate memory" in error.message


def test_out_of_memory_while_saving_runs_the_node_again() -> None:
    calls: list[str] = []

    def save(outputs: dict[str, Any]) -> Any:
        calls.append("save")
        if calls.count("save") == 1:
            raise MemoryError
        return outputs

    done = go(lambda i, p: calls.append("execute") or 3, save=save, free_memory=lambda: calls.append("free"))
    assert done.saved == {"value": 3}
    assert calls == ["execute", "save", "free", "execute", "save"]


def test_the_second_try_fails_otherwise() -> None:
    errors: list[BaseException] = [MemoryError(), ValueError("other")]
    error = failure(lambda i, p: raising(errors.pop(0))(i, p))
    assert isinstance(error, ExecutionError)
    assert error.message == "Node raised ValueError: other"
    errors = [MemoryError(), Cancelled("meanwhile")]
    assert isinstance(failure(lambda i, p: raising(errors.pop(0))(i, p)), Cancelled)


def test_what_the_first_try_made_is_gone_before_the_second() -> None:
    class Big:
        pass

    made: list[weakref.ref[Big]] = []
    alive: list[bool] = []

    def body(inputs: dict[str, Any], params: dict[str, Any]) -> Any:
        big = Big()
        big.myself = big  # type: ignore[attr-defined]  # a cycle, too
        if not made:
            made.append(weakref.ref(big))
            raise MemoryError
        return None

    gc.disable()
    try:
        go(body, free_memory=lambda: alive.append(made[0]() is not None))
        assert made[0]() is None
    finally:
        gc.enable()


def test_freeing_memory_fails() -> None:
    def broken() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    error = failure(raising(MemoryError), free_memory=broken)
    assert isinstance(error, CUDAError)


def test_inputs_are_copied_anew_for_the_second_try() -> None:
    x = torch.zeros(2)
    calls: list[int] = []

    def body(inputs: dict[str, Any], params: dict[str, Any]) -> Any:
        inputs["x"].add_(1)
        calls.append(1)
        if len(calls) == 1:
            raise MemoryError
        return inputs["x"]

    assert go(Writer(body), {"x": x}).saved["value"].tolist() == [1.0, 1.0]


# -------------------------------------------------------------------- device


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
    assert "test_runner.py" in found.details["traceback"]


def test_accelerator_error() -> None:
    kind = getattr(torch, "AcceleratorError", None)
    if kind is None:
        pytest.skip("torch before 2.8")
    error = kind.__new__(kind)
    error.args = ("CUDA error: unspecified launch failure",)
    found = failure(raising(error))
    assert isinstance(found, CUDAError)
    assert found.details["sticky"] == "true"
