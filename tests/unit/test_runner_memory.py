"""One job on one node, where memory runs out: it gets one second try."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from one_job import CPU_OOM, Writer, failure, go, raising

from vortex_worker import device
from vortex_worker.errors import Cancelled, CUDAError, ExecutionError, OOMSoft

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
