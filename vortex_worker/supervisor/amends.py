"""What Ctrl-C has left half done is done, or begun anew.

An exception of a signal's handler comes between any two steps of the main thread: a job may be in no queue and in no
worker then, an idle worker on nobody's list, a message not sent. Whoever is interrupted under the jobs' lock, or
before all is sent, says so here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vortex_worker.errors import WorkerLost
from vortex_worker.supervisor.job import JobState

if TYPE_CHECKING:
    from vortex_worker.supervisor.crew import Crew
    from vortex_worker.supervisor.jobs import Jobs
    from vortex_worker.supervisor.link import WorkerLink
    from vortex_worker.supervisor.scheduler import Scheduler
    from vortex_worker.supervisor.task import Task


class Amends:
    """Sets right the jobs of one crew."""

    def __init__(self, crew: Crew, jobs: Jobs, scheduler: Scheduler, tasks: dict[int, Task]) -> None:
        """``tasks``: all that have not ended, by job id."""
        self._crew = crew
        self._jobs = jobs
        self._scheduler = scheduler
        self._tasks = tasks

    def make(self) -> None:
        """In the fabric's thread: nothing interrupts it."""
        with self._crew.lock:
            links = self._crew.links()
            self._scheduler.restore()
            self._crew.settled = False
            given = {task for link in links for task in (link.task, *link.ahead) if task is not None}
            for task in list(self._tasks.values()):
                if task.deadline and task.timer is None:
                    self._crew.call(self._jobs.arm_deadline, task)
                if task not in given and task not in self._scheduler.waiting and not task.rebuilding:
                    self._begin_anew(task)
            for link in links:
                self._settle(link)
            started = self._jobs.assign() + [(link, None) for link in links if link.unsent]
            self._jobs.tell()
        self._jobs.send(started)
        for link in links:
            self._crew.inbox.watch(link)

    def _begin_anew(self, task: Task) -> None:
        """Locked. It is in no queue, and in no worker."""
        job = task.job
        if job.state is JobState.RUNNING and task.retries == 0:
            self._jobs.finish(task, error=WorkerLost(f"{job!r}: who read its result was interrupted"))
        elif task.pinned is not None and not task.pinned.alive:
            self._jobs.finish(task, error=WorkerLost(f"worker {task.pinned.worker_id} died before it ran"))
        elif job.done():
            self._jobs.finish(task)
        else:
            task.retries -= job.state is JobState.RUNNING
            self._jobs.requeue([task])

    def _settle(self, link: WorkerLink) -> None:
        """Locked. What it was given is sent, and it is looked at."""
        for task in (link.task, *link.ahead):
            if task is not None and task.sender is not link and task not in link.unsent:
                link.unsent.append(task)
                task.sender = link
        self._jobs.flight.settle(link)
        self._scheduler.free(link)
