"""Where calls become jobs: their values are put into shared memory, and they are queued."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from vortex_worker.errors import FabricClosed, JobError, VortexError
from vortex_worker.ipc import control_pb2 as pb
from vortex_worker.ipc import protocol
from vortex_worker.supervisor.arguments import mapping, whole
from vortex_worker.supervisor.job import Job, monotonic_deadline
from vortex_worker.supervisor.objects import ObjectRef
from vortex_worker.supervisor.task import Task, Work

if TYPE_CHECKING:
    from vortex_worker._core.handle import TensorHandle
    from vortex_worker.supervisor.crew import Crew
    from vortex_worker.supervisor.memory import Memory


class Intake:
    """Takes the calls of one fabric, from any thread."""

    def __init__(self, crew: Crew, memory: Memory) -> None:
        self._crew = crew
        self._memory = memory
        #: Called with each job before it is queued.
        self.observers: tuple[Callable[[Job], None], ...] = ()

    @cached_property
    def client(self) -> Any:
        """``bridge.client``, and torch with it, from the first tensor on."""
        from vortex_worker.bridge import client

        return client

    def submit(
        self,
        op_type: str,
        inputs: Mapping[str, Any] | None,
        params: Mapping[str, Any] | None,
        *,
        deadline: float | None = None,
        retries: int = 1,
        priority: int = 0,
        block: bool = True,
        timeout: float | None = None,
        attended: bool = False,
        question: str = "",
    ) -> Job:
        """As ``Fabric.submit``. ``attended``: the caller will wait for the result at once."""
        task = self._task(op_type, inputs, params, deadline, retries, priority, question)
        job = task.job
        try:
            for observer in self.observers:
                observer(job)
            self._crew.jobs.submit(task, attended=attended, block=block, timeout=timeout)
        except VortexError as error:
            job._end(None, error)  # its observers alone know of it
            raise
        except BaseException as error:  # Ctrl-C: a worker may have got it, and nobody else knows of it
            self._crew.jobs.interrupted()
            _give_up(job, error)
            raise
        return job

    def submit_many(
        self,
        calls: Iterable[Sequence[Any]],
        *,
        deadline: float | None,
        retries: int,
        priority: int,
        block: bool,
        timeout: float | None,
    ) -> list[Job]:
        """As ``Fabric.submit_many``."""
        tasks: list[Task] = []
        for index, call in enumerate(calls):
            try:
                op_type, inputs, params = _parts(call)
                tasks.append(self._task(op_type, inputs, params, deadline, retries, priority))
            except JobError as error:
                error.message = f"call {index}: {error.message}"
                raise
            except (TypeError, ValueError) as error:
                kind = TypeError if isinstance(error, TypeError) else ValueError
                raise kind(f"call {index}: {error}") from error
        jobs = [task.job for task in tasks]
        try:
            for job in jobs:
                for observer in self.observers:
                    observer(job)
            self._crew.jobs.submit_many(tasks, block=block, timeout=timeout)
        except BaseException as error:
            if not isinstance(error, VortexError):
                self._crew.jobs.interrupted()
            for job in jobs:
                _give_up(job, error)
            raise
        return jobs

    def _task(
        self,
        op_type: str,
        inputs: Mapping[str, Any] | None,
        params: Mapping[str, Any] | None,
        deadline: float | None,
        retries: int,
        priority: int,
        question: str = "",
    ) -> Task:
        """A call as a task: its values in shared memory, not queued yet."""
        if self._crew.forked_off:
            self._crew.check_open()
        tensors: list[tuple[TensorHandle, Any]] = []
        refs: list[ObjectRef] = []

        def place(value: Any) -> TensorHandle | ObjectRef:
            if isinstance(value, ObjectRef):
                if value.arena is not self._memory.arena:
                    raise ValueError(f"{value!r} is another fabric's: objects are used where they were made")
                refs.append(value)
                return value
            placed: tuple[TensorHandle, Any] = self.client.place(self._memory.arena, value, self._memory.allocate)
            tensors.append(placed)
            return placed[0]

        if not isinstance(op_type, str):
            raise TypeError(f"op_type is {op_type!r:.80}: it takes a node's name")
        if type(inputs) is not dict:
            inputs = mapping("inputs", inputs)
        if type(params) is not dict:
            params = mapping("params", params)
        staged = protocol.stage(inputs, place), protocol.stage(params, place)
        if question:
            work = Work(op_type, *staged, tensors, refs, question=pb.Question.Value(question))
        else:
            work = self._crew.preloads.find(Work(op_type, *staged, tensors, refs))
        if type(priority) is not int:  # these are asked first, since a call costs more
            priority = whole("priority", priority)
        if type(retries) is not int or retries < 0:
            retries = whole("retries", retries, 0)
        job = Job(self._crew.jobs.next_id(), op_type, self._crew.jobs.cancel, self._crew.inbox.attend)
        task = Task(job, work, 0, priority, retries)
        if deadline is not None:
            task.deadline, task.seconds = monotonic_deadline(deadline), deadline
        return task


def _parts(call: Sequence[Any]) -> tuple[Any, Any, Any]:
    """``(op_type, inputs, params)``, of which the last may be missing."""
    if isinstance(call, str) or not isinstance(call, Sequence) or not 1 <= len(call) <= 3:
        raise TypeError(f"{call!r:.80}: it takes (op_type, inputs, params), as submit does")
    op_type, inputs, params = (*call, None, None)[:3]
    return op_type, inputs, params


def _give_up(job: Job, error: BaseException) -> None:
    """End a job of which nobody will know, whether it was queued or not."""
    job.cancel()
    if job.attempts == 0:
        job._end(None, error if isinstance(error, VortexError) else FabricClosed(f"it was not submitted: {error!r}"))
