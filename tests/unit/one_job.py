"""A node that does what a test says, and one job on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from vortex_worker.errors import JOB_ERRORS, JobError
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
