"""Where calls become jobs: their values are put into shared memory, and they are queued."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from vortex_worker.errors import FabricClosed, VortexError
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
        staged = protocol.stage(mapping("inputs", inputs), place), protocol.stage(mapping("params", params), place)
        if question:
            work = Work(op_type, *staged, tensors, refs, question=pb.Question.Value(question))
        else:
            work = self._crew.preloads.find(Work(op_type, *staged, tensors, refs))
        job = Job(self._crew.jobs.next_id(), op_type, self._crew.jobs.cancel, self._crew.jobs.attend)
        task = Task(job, work, monotonic_deadline(deadline), whole("priority", priority), whole("retries", retries))
        task.seconds = deadline or 0.0
        try:
            for observer in self.observers:
                observer(job)
            self._crew.jobs.submit(task, attended=attended, block=block, timeout=timeout)
        except VortexError as error:
            job._end(None, error)  # its observers alone know of it
            raise
        except BaseException as error:  # Ctrl-C: a worker may have got it, and nobody else knows of it
            job.cancel()
            if job.attempts == 0:  # an observer raised
                job._end(None, FabricClosed(f"it was not submitted: {error!r}"))
            raise
        return job
