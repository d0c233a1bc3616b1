"""Runs one job on one node: validate, execute, save; and gives every failure its code.

Out of memory gets one second try, of execute *and* save, after idle objects and caches are dropped.
"""

from __future__ import annotations

import gc
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import cache
from typing import Any, NamedTuple, TypeVar

from vortex_worker import device
from vortex_worker.device import cpu
from vortex_worker.errors import ExecutionError, OOMSoft, ValidationError
from vortex_worker.executor.base import AbstractExecutor
from vortex_worker.executor.context import JobContext
from vortex_worker.executor.failure import as_job_error, message_of, unwrap
from vortex_worker.executor.ports import OpSpec
from vortex_worker.executor.validation import as_error, check_outputs, is_tensor, one_line, prepare

Saved = TypeVar("Saved")


class Done(NamedTuple):
    """What a run gave, and what it took in ns."""

    saved: Any
    execute_ns: int
    save_ns: int


def run(
    executor: AbstractExecutor,
    spec: OpSpec,
    inputs: Mapping[str, Any],
    params: Mapping[str, Any],
    context: JobContext,
    *,
    save: Callable[[dict[str, Any]], Saved],
    free_memory: Callable[[], object],
) -> Done:
    """Run one job.

    Args:
        save: takes the outputs by port to where the supervisor finds them.
        free_memory: drops what can be made again, when memory is short.

    Raises:
        ValidationError (WK-004), OOMSoft (WK-001), CUDAError (WK-005), ExecutionError (WK-006), or
        whatever JobError the node, or saving its outputs, raised.
    """
    inputs, params = prepare(spec, inputs, params)
    executor.context = context
    if type(executor).validate is not AbstractExecutor.validate:
        _ask_node(executor, spec, dict(inputs), dict(params))

    def attempt() -> Done:
        given = _private_copies(inputs) if spec.mutates_inputs else dict(inputs)
        begun = time.perf_counter_ns()
        with _inference():
            outputs = check_outputs(spec, executor.execute(given, dict(params)))
            executed = time.perf_counter_ns()
            saved = save(outputs)
        return Done(saved, executed - begun, time.perf_counter_ns() - executed)

    try:
        return attempt()
    except BaseException as error:
        if not device.is_oom(unwrap(error)):
            raise as_job_error(error, spec.name) from None
        # What the failed attempt made is held by its traceback.
        traceback.clear_frames(error.__traceback__)
    try:
        free_memory()
        gc.collect()
        device.empty_cache()
        return attempt()
    except BaseException as error:
        if device.is_oom(unwrap(error)):
            raise OOMSoft(f"{spec.name}: out of memory, twice: {message_of(unwrap(error))}") from None
        raise as_job_error(error, spec.name) from None


@cache
def _inference() -> AbstractContextManager[None]:
    """torch's inference mode: one object, entered for each job and never twice at a time."""
    import torch

    return torch.inference_mode()


def ask(executor: AbstractExecutor, question: str, inputs: dict[str, Any], params: dict[str, Any]) -> Any:
    """What a node answers to one of ``ports.QUESTIONS``: plain data, but it may be anything.

    Raises:
        ExecutionError (WK-006), or whatever JobError the node raised.
    """
    executor.context = JobContext()
    try:
        with _inference():
            match question:
                case "CHANGED":
                    return executor.changed(params)
                case "NEEDS":
                    return executor.needs(inputs, params)
                case "PRECHECK":
                    return executor.precheck(params)
    except BaseException as error:
        raise as_job_error(error, f"{executor.op_type}: {question.lower()}") from None
    raise ValidationError(f"a node can't be asked {question!r:.40}")


def give_back() -> None:
    """Give the kernel the memory that the C library keeps for the next step of a job. A card's cache stays: others have
    no use for it, and it takes long to fill."""
    cpu.empty_cache()


def _ask_node(executor: AbstractExecutor, spec: OpSpec, inputs: dict[str, Any], params: dict[str, Any]) -> None:
    try:
        problems = executor.validate(inputs, params)
    except BaseException as error:
        raise as_job_error(error, f"{spec.name}.validate") from None
    if not isinstance(problems, list | tuple) or not all(isinstance(problem, str) for problem in problems):
        raise ExecutionError(
            f"{spec.name}.validate returned a {type(problems).__name__}: it must return a list of strings"
        )
    if problems:
        raise as_error(spec, list(map(one_line, problems)))


def _private_copies(value: Any) -> Any:
    """The same value with copies of its tensors; resident objects are shared all the same."""
    if is_tensor(value):
        return value.clone()
    if isinstance(value, dict):
        return {key: _private_copies(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_private_copies(item) for item in value]
    if type(value) is tuple:  # in what a pack keeps under a type of its own
        return tuple(map(_private_copies, value))
    return value
