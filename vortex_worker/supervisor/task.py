"""A job as the supervisor keeps it: what to send, what it needs alive, how often it may be tried."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vortex_worker._core.handle import TensorHandle
from vortex_worker.errors import InvalidHandle, VortexError
from vortex_worker.ipc import protocol
from vortex_worker.supervisor.job import Job
from vortex_worker.supervisor.objects import ObjectRef

if TYPE_CHECKING:
    from asyncio import TimerHandle

    from vortex_worker.supervisor.link import WorkerLink


@dataclass(eq=False, slots=True)
class Work:
    """What is to be done: enough to do it again after the job is forgotten (an object's lineage).

    ``inputs`` and ``params`` are plain data in which each tensor is its TensorHandle.
    """

    op_type: str
    inputs: dict[str, Any]
    params: dict[str, Any]
    #: Input tensors: kept, so that their memory is, each with the handle a result may view.
    tensors: list[tuple[TensorHandle, Any]] = field(default_factory=list)
    refs: list[ObjectRef] = field(default_factory=list)
    #: Whether each worker does it in advance (``preload.py``).
    everywhere: bool = False
    #: What the node is asked: a number of ``Question``; 0: to run.
    question: int = 0
    #: Where tensors start, in order, and which of those until there reaches farthest; made when asked for.
    _spans: list[tuple[int, _Span]] = field(default_factory=list)

    def message(self, encoder: protocol.Encoder, job_id: int, deadline: int, worker: WorkerLink) -> bytes:
        """The JobSubmit to send to ``worker``: objects have the ids that they have there.

        Raises:
            TypeError, ValueError: a value that can't travel.
        """

        def name_object(value: Any) -> protocol.ObjectHandle:
            number = value.id_in(worker) if isinstance(value, ObjectRef) else None
            if number is None:
                raise TypeError(f"{type(value).__name__} can't be sent to a worker")
            return protocol.ObjectHandle(number, value.type)

        return encoder.submit(job_id, self.op_type, self.inputs, self.params, deadline, name_object, self.question)

    def input_covering(self, offset: int) -> str:
        """The input port whose tensor covers ``offset`` of the arena, or ""."""
        for port, value in self.inputs.items():
            if any(h.offset <= offset < h.offset + h.nbytes for h in _handles(value)):
                return port
        return ""

    def owner_of_view(self, handle: TensorHandle) -> Any | None:
        """The input tensor that ``handle``, found in a result, is a view of; None if of none.

        Of inputs that overlap, it may be any that holds all of it. Costs the logarithm of how many there are.

        Raises:
            InvalidHandle: it begins inside an input but reaches out of it, and of every other.
        """
        if not self.tensors:
            return None
        mine, tensor = self.tensors[0]
        if mine.covers(handle) and (handle.nbytes or handle.offset == mine.offset):  # as in most jobs
            return tensor
        if not self._spans:
            self._spans = _by_start(self.tensors)
        before = bisect_right(self._spans, handle.offset, key=lambda span: span[0])
        if before == 0:
            return None
        widest = self._spans[before - 1][1]
        if handle.offset >= widest.covers:
            return None
        if handle.offset + handle.nbytes > widest.end:
            raise InvalidHandle(f"handle at {handle.offset} reaches out of the input at {widest.start}")
        return widest.tensor


class _Span:
    """Where an input lies."""

    __slots__ = ("covers", "end", "start", "tensor")

    def __init__(self, handle: TensorHandle, tensor: Any) -> None:
        self.start = handle.offset
        self.end = handle.offset + handle.nbytes
        self.covers = max(self.end, self.start + 1)  # an empty tensor is at its offset, too
        self.tensor = tensor


def _farther(a: _Span, b: _Span) -> _Span:
    return a if (a.covers, a.end) > (b.covers, b.end) else b


def _by_start(tensors: list[tuple[TensorHandle, Any]]) -> list[tuple[int, _Span]]:
    spans = sorted((_Span(handle, tensor) for handle, tensor in tensors), key=lambda span: span.start)
    reach = itertools.accumulate(spans, _farther)
    return [(span.start, widest) for span, widest in zip(spans, reach, strict=True)]


@dataclass(eq=False, slots=True)
class Task:
    """One job's work, and how far the supervisor is with it."""

    job: Job
    work: Work
    deadline: int = 0  # CLOCK_MONOTONIC ns; 0: none
    priority: int = 0  # higher goes first
    retries: int = 0  # deaths of a worker that it may still cause
    #: The only worker it may run on: where an object is to be made again.
    pinned: WorkerLink | None = None
    #: The error to give once its worker has been killed for it.
    ending: VortexError | None = None
    #: Of its deadline.
    timer: TimerHandle | None = None
    #: From when it was submitted to its deadline, s.
    seconds: float = 0.0
    #: When a worker that was given it began with it last, as far as it told, CLOCK_MONOTONIC ns.
    begun: int = 0
    #: What it was expected to take when it was given ahead, ns.
    expected: int = 0
    #: Whether its caller has asked for its end.
    cancelled: bool = False
    #: Whose ``unsent`` it was put in last.
    sender: WorkerLink | None = None
    #: Whether it waits for objects to be made again.
    rebuilding: bool = False


def _handles(value: Any) -> Iterator[TensorHandle]:
    if isinstance(value, TensorHandle):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _handles(item)
    elif isinstance(value, list):
        for item in value:
            yield from _handles(item)
