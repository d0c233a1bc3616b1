"""Jobs that a worker is given before it has done with the one it runs, so that it never waits for the next.

::

    link.task      what it runs, as far as it has told: the next result must be of this one
    link.ahead     what it runs then, in this order
    link.unsent    those of both that have not been sent, in order, and cancellations behind them

Only short jobs that may be run again are given ahead, and only where no worker is idle: all that a worker has is
expected to take less than a millisecond. Where that was wrong, what is ahead is taken back. A job ahead has not begun:
its worker's death is not counted against it.

What was sent is answered for. So a job that is cancelled, overdue or taken back while it is ahead leaves an entry in
its place, whose job has ended and whose result nobody waits for.
"""

from __future__ import annotations

import os
from collections import deque
from typing import TYPE_CHECKING

from vortex_worker._core.slots import monotonic_ns
from vortex_worker.errors import Cancelled
from vortex_worker.supervisor.job import Job, JobState
from vortex_worker.supervisor.task import Task

if TYPE_CHECKING:
    from vortex_worker.supervisor.crew import Crew
    from vortex_worker.supervisor.link import WorkerLink

_MOST = 16  # jobs ahead in one worker: so that its socket has room for all of them, whatever it does meanwhile
_FEW = _MOST // 2  # with so many left it gets more: several are sent, and read, at a time
_BUDGET = 1_000_000  # ns that all a worker has may be expected to take
_QUICK = 50_000  # ns: about what it takes to wake a worker
_LONG = 1_000_000_000  # ns that are expected of a node which was not seen yet, and the most that is remembered


class Flight:
    """What the workers of one crew are given ahead. All is under its lock."""

    def __init__(self, crew: Crew, grace: float) -> None:
        """``grace``: seconds that a worker has to end a job which nobody wants."""
        self._crew = crew
        self._grace = grace
        self._cpus = len(os.sched_getaffinity(0))
        self._expected: dict[str, int] = {}  # ns, by op type
        #: Seconds that a job may take after all, before those behind it are taken back.
        self.patience = 0.01

    # ---- what to expect

    def learn(self, op_type: str, took: int) -> None:
        """A job took so many ns: a quarter of what is expected of the next.

        By its worker's word, unless it takes ``patience``. With a lie it can have jobs not given ahead, or given to
        it although others are idle, and keep each waiting for as long.
        """
        took = min(took, _LONG)
        self._expected[op_type] = (3 * self._expected.get(op_type, took) + took) // 4

    def expects(self, op_type: str) -> int:
        """How long such a job will take, ns."""
        return self._expected.get(op_type, _LONG)

    def enough(self, busy: int, task: Task) -> bool:
        """Whether so many workers that may have room are to be asked before one that is idle.

        Who is woken for a quick job, while each CPU has a worker that runs quick ones, only takes turns with those.
        """
        return busy >= self._cpus and self.expects(task.work.op_type) <= _QUICK

    def has_room(self, link: WorkerLink, task: Task) -> bool:
        """Whether ``task`` may be given to a worker that runs another."""
        return (
            link.task is not None
            and not link.task.job.done()
            and len(link.ahead) < _MOST
            and task.retries > 0  # for a worker that lies, or is not listened to any more, may have begun with it
            and task.pinned is None
            and not task.work.question
            and link.active
            and not (link.dying or link.retiring or link.learning)
            and self.expects(link.task.work.op_type) + link.load + self.expects(task.work.op_type) <= _BUDGET
            and not self._overdue(link)
        )

    # ---- a worker's jobs, one after another

    def put(self, link: WorkerLink, task: Task) -> None:
        """``link`` is given ``task`` ahead."""
        task.expected = self.expects(task.work.op_type)
        link.load += task.expected
        link.ahead.append(task)
        if not link.guarded:
            link.guarded = True
            self._crew.call(self._crew.loop.call_later, self.patience, self._look, link)

    def advance(self, link: WorkerLink) -> bool:
        """``link`` has done with its job, and runs the next one ahead. Whether it should be given more."""
        link.task = task = link.ahead.popleft()
        link.load -= task.expected
        task.begun = monotonic_ns()
        job = task.job
        if job.done():
            self._crew.call(self._crew.loop.call_later, self._grace, self._end_unwanted, link, task)
        else:
            job.attempts += 1
            job.worker = link.worker_id
            job.state = JobState.RUNNING
        return len(link.ahead) < _FEW

    def _end_unwanted(self, link: WorkerLink, task: Task) -> None:
        with self._crew.lock:
            if link.task is task:
                self._crew.endings.give_up(link, f"it did not end within {self._grace} s what nobody waits for")

    # ---- out of turn

    def strike(self, link: WorkerLink, task: Task) -> bool:
        """Take out a task that can't be sent. False: it was taken out before."""
        if link.task is not None and link.task.job.id == task.job.id:
            found = link.task
            if link.ahead:
                self.advance(link)
            else:
                link.task = None
            return found is task
        for found in link.ahead:
            if found.job.id == task.job.id:
                link.ahead.remove(found)
                link.load -= found.expected
                return found is task
        return False

    def pass_over(self, link: WorkerLink, task: Task) -> None:
        """``link`` need not run ``task``, which is ahead and about to be ended."""
        link.unsent.append(task.job.id)
        self._crew.call(self._crew.jobs.send, [(link, None)])

    def take_all(self, link: WorkerLink) -> list[Task]:
        """What a dead worker had not begun, in order."""
        taken = [task for task in link.ahead if not task.job.done()]
        link.ahead.clear()
        link.unsent = deque()  # another thread may be at the old one
        link.load = 0
        return taken

    def settle(self, link: WorkerLink) -> None:
        """Who gave it jobs was interrupted."""
        link.load = sum(task.expected for task in link.ahead)
        if link.guarded:
            self._crew.call(self._look, link)

    def _overdue(self, link: WorkerLink) -> bool:
        return link.task is not None and monotonic_ns() - link.task.begun > self.patience * 1e9

    def _look(self, link: WorkerLink) -> None:
        """In the fabric's thread. Take back what waits behind a job that was expected to be short, and isn't."""
        with self._crew.lock:
            link.guarded = False
            if not self._overdue(link):
                if link.ahead:
                    link.guarded = True
                    self._crew.loop.call_later(self.patience, self._look, link)
                return
            assert link.task is not None
            self.learn(link.task.work.op_type, monotonic_ns() - link.task.begun)
            taken = [task for task in link.ahead if not task.job.done()]
            link.ahead = deque(map(_vacated, link.ahead))
            link.load = sum(task.expected for task in link.ahead)
            link.unsent.extend(task.job.id for task in taken)
            self._crew.jobs.requeue(taken)
            started = [*self._crew.jobs.assign(), (link, None)]
        self._crew.jobs.send(started)


def _vacated(task: Task) -> Task:
    """What stays in its place: of the same number, and until it is answered, nothing is put behind it."""
    if task.job.done():
        return task
    job = Job(task.job.id, task.job.op_type, lambda job: None)
    job._end(None, Cancelled("taken back before it ran"))
    return Task(job, task.work, expected=_LONG, sender=task.sender)
