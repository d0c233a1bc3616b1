"""Objects that were lost with a worker, or dropped by it, and are made again before a job that needs them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from vortex_worker.errors import JobError, ObjectLost, VortexError, WorkerLost
from vortex_worker.supervisor.job import Job
from vortex_worker.supervisor.objects import ObjectRef
from vortex_worker.supervisor.task import Task

if TYPE_CHECKING:
    from vortex_worker.supervisor.crew import Crew
    from vortex_worker.supervisor.jobs import Jobs
    from vortex_worker.supervisor.link import WorkerLink


class Rebuilds:
    """Makes the lost objects of one crew's jobs again, from the work that made them."""

    def __init__(self, crew: Crew, jobs: Jobs) -> None:
        self._crew = crew
        self._jobs = jobs

    def begin(self, task: Task, lost: list[ObjectRef], link: WorkerLink) -> None:
        """Locked. Make lost objects again in ``link``, then run ``task`` there."""
        hopeless = [ref for ref in lost if ref.lineage is None]
        if hopeless:
            self._jobs.finish(task, error=ObjectLost(f"{hopeless[0]!r} is gone, and how it was made is not known"))
            return
        batch = Rebuild(task, len(lost))
        task.rebuilding = True
        for ref in lost:
            assert ref.lineage is not None
            job = Job(self._jobs.next_id(), ref.lineage.op_type, self._jobs.cancel, self._crew.inbox.attend)
            self._jobs.pin(Task(job, ref.lineage, pinned=link))
            job.add_done_callback(partial(self._rebuilt, batch, ref))

    def _rebuilt(self, batch: Rebuild, ref: ObjectRef, job: Job) -> None:
        """One object was made again, or could not be: the last one lets its task go on."""
        with self._crew.lock:
            task = batch.task
            if batch.failed or task.job.done():
                return
            error = batch.settle(ref, job)
            if isinstance(error, WorkerLost) and task.retries > 0:
                task.retries -= 1
            elif error is not None:
                why = f"{ref!r} is gone and could not be made again: {error}"
                self._jobs.finish(task, error=ObjectLost(why))
                return
            elif batch.left:
                return
            task.rebuilding = False
            self._jobs.requeue([task])
            started = self._jobs.assign()
        self._jobs.send(started)


class Rebuild:
    """The lost objects that one task waits for."""

    def __init__(self, task: Task, left: int) -> None:
        self.task = task
        self.left = left
        self.failed = False

    def settle(self, ref: ObjectRef, job: Job) -> VortexError | None:
        """``job`` made ``ref`` again, or failed to: the error, if so."""
        error = job.exception()
        if error is None and job._outputs is not None:
            try:
                again = job._outputs.at(ref.path)
            except JobError as other:
                error = other
            else:
                if isinstance(again, ObjectRef) and again.type == ref.type:
                    ref.move(again)
                else:
                    error = ObjectLost(f"{job.op_type} gave no {ref.type} at {ref.path} this time")
        self.left -= 1
        self.failed = error is not None
        return error
