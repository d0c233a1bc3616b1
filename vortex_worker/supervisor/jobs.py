"""The jobs of one fabric: queued, given to workers, tried again, ended.

All state is under the crew's lock, which is also the jobs': a job and the worker that runs it change together.
Methods that say "locked" are called under it, all others without. Nothing is sent under it: what ``assign``
returns goes to ``send`` once the lock is free.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from typing import TYPE_CHECKING

from vortex_worker._core.slots import monotonic_ns
from vortex_worker.errors import (
    Cancelled,
    DeadlineExceeded,
    FabricClosed,
    JobError,
    ObjectLost,
    ProtocolError,
    QueueFull,
    ValidationError,
    VortexError,
    WorkerLost,
)
from vortex_worker.ipc import control_pb2 as pb
from vortex_worker.ipc import protocol
from vortex_worker.supervisor.amends import Amends
from vortex_worker.supervisor.bell import Bell
from vortex_worker.supervisor.deadline import exceeded
from vortex_worker.supervisor.flight import Flight
from vortex_worker.supervisor.job import ENDS, Job, JobState, Progress, Timings, in_callback, refuse_in_callback
from vortex_worker.supervisor.outputs import Outputs, Stored
from vortex_worker.supervisor.rebuild import Rebuilds
from vortex_worker.supervisor.recovery import exhausted, explain_death
from vortex_worker.supervisor.scheduler import Scheduler, missing
from vortex_worker.supervisor.task import Task

if TYPE_CHECKING:
    from vortex_worker.supervisor.crew import Crew
    from vortex_worker.supervisor.link import WorkerLink
    from vortex_worker.supervisor.memory import Memory

#: Workers that are to be sent what is unsent, and the tasks that they were given; None: no new one.
Started = list[tuple["WorkerLink", Task | None]]

_DRAINING = "the fabric takes no more jobs: it is being drained"


class Jobs:
    """Every job that has not ended, and which worker has it."""

    def __init__(self, crew: Crew, memory: Memory, queue: int, grace: float) -> None:
        self._crew = crew
        self._arena = memory.arena
        self._limit = queue
        self._grace = grace
        self._lock = crew.lock
        self._changed = crew.changed
        self._room = Bell(crew.lock)  # wakes one who waits to submit for each place, not all
        self.flight = Flight(crew, grace)
        self._scheduler = Scheduler(self.flight.has_room, self.flight.enough)
        self._rebuilds = Rebuilds(crew, self)
        self._ids = itertools.count(1)
        self._tasks: dict[int, Task] = {}  # by job id
        self._draining = False
        self._amends = Amends(crew, self, self._scheduler, self._tasks)

    # ---------------------------------------------------------- any thread

    def next_id(self) -> int:
        """A job id, never used before in this fabric."""
        return next(self._ids)

    def submit(self, task: Task, *, attended: bool = False, block: bool = True, timeout: float | None = None) -> None:
        """Queue a task, or send it at once where a worker is idle.

        ``attended``: the caller will wait for it now, and so read its worker's answer.

        Raises:
            FabricClosed, LaunchError: it can never run.
            QueueFull: the queue is full, and stayed so for ``timeout`` s (at once unless ``block``).
        """
        with self._lock:
            if len(self._scheduler.waiting) >= self._limit and not self._has_room():
                self._wait_for_room(block, timeout)
            self._crew.check_open()
            if self._draining:
                raise FabricClosed(_DRAINING)
            self._tasks[task.job.id] = task
            self._scheduler.add(task)
            started = self.assign()
        self.send(started, attended=task if attended else None)
        if task.deadline:
            self._crew.call(self.arm_deadline, task)

    def submit_many(self, tasks: list[Task], *, block: bool, timeout: float | None) -> None:
        """Queue tasks in their order, as many at a time as there is room for. Raises as ``submit``."""
        until = None if timeout is None else time.monotonic() + timeout
        left = deque(tasks)
        while left:
            with self._lock:
                if not self._has_room():
                    self._wait_for_room(block, None if until is None else until - time.monotonic())
                self._crew.check_open()
                if self._draining:
                    raise FabricClosed(_DRAINING)
                some = [left.popleft() for _ in range(min(len(left), self._limit - len(self._scheduler)))]
                for task in some:
                    self._tasks[task.job.id] = task
                    self._scheduler.add(task)
                started = self.assign()
            self.send(started)
            for task in some if some[0].deadline else ():
                self._crew.call(self.arm_deadline, task)

    def _wait_for_room(self, block: bool, timeout: float | None) -> None:
        """Locked. Raises QueueFull."""
        may_wait = block and not in_callback()  # for it would wait for itself
        if not self._room.wait_for(self._has_room, timeout if may_wait else 0):
            raise QueueFull(f"the queue of {self._limit} is full; Fabric's queue= lets more jobs wait")

    def _has_room(self) -> bool:
        return len(self._scheduler) < self._limit or self._crew.over

    def interrupted(self) -> None:
        """Ctrl-C came while jobs and workers were changed, or before all was sent."""
        self._crew.call(self._amends.make)

    def tell(self) -> None:
        """Locked. Wake all who wait for a change."""
        if self._changed.waiting:
            self._changed.ring()
        if self._room.waiting:
            self._room.ring(max(0, self._limit - len(self._scheduler)))

    def cancel(self, job: Job) -> None:
        """End a job: at once where it waits, through its worker where it runs."""
        try:
            self._cancel(job)
        except BaseException:
            self.interrupted()
            raise

    def _cancel(self, job: Job) -> None:
        with self._lock:
            task = self._tasks.get(job.id)
            if task is None or job.done():
                return
            link = self.runner_of(task)
            if link is None:
                self._withdraw(task, Cancelled("cancelled before it ran"))
                return
            if not task.cancelled:  # else its worker's time runs already
                error = Cancelled(f"cancelled; the node did not stop within {self._grace} s and its worker was killed")
                self._crew.call(self._crew.loop.call_later, self._grace, self._end_by_force, task, error)
            task.cancelled = True
        self._crew.inbox.watch(link)  # who was to read its answer may be gone
        self._crew.send_or_lose(link, job_cancel=pb.JobCancel(job_id=job.id))

    def leave_to_parent(self, error: VortexError) -> None:
        """In a process that was just forked: nobody here will hear of a job's end."""
        for task in list(self._tasks.values()):
            task.job._abandon(error)

    def drain(self, timeout: float | None) -> None:
        """Take no more jobs, and wait until those there are have ended. TimeoutError: they have not."""
        refuse_in_callback("drain a fabric")
        with self._lock:
            self._draining = True
            self._changed.ring()
            if not self._changed.wait_for(lambda: not self._tasks, timeout):
                raise TimeoutError(f"jobs that have not ended within {timeout} s: {len(self._tasks)}")

    # ------------------------------------------------------------- placing

    def assign(self) -> Started:
        """Locked. Give each free worker its next task. What is returned is to be sent."""
        if not self._crew.settled:
            self._crew.promote()
        started: Started = []
        now = 0
        while pair := self._scheduler.pair():
            link, task = pair
            there = link.preloaded.get(task.work)
            if there is not None:
                task.job.worker = link.worker_id
                self.finish(task, there.share())
                continue
            if task.work.refs and (lost := missing(task.work.refs, link)):
                self._rebuilds.begin(task, lost, link)
                continue
            job = task.job
            job._runner = link
            if link.task is None:
                link.task = task
                task.begun = now = now or monotonic_ns()
                job.attempts += 1
                job.worker = link.worker_id
                job.state = JobState.RUNNING
            else:
                self.flight.put(link, task)
            link.unsent.append(task)
            task.sender = link
            started.append((link, task))
        if started:
            self.tell()
        return started

    def free(self, link: WorkerLink) -> None:
        """Locked. A worker takes jobs from now on."""
        self._scheduler.free(link)

    def send(self, started: Started, attended: Task | None = None) -> None:
        """Tell the workers of the tasks that they were given, and have the answers read, but of ``attended``."""
        for link, task in started:
            try:
                unfit = link.flush()
                while unfit:
                    self._reject(link, *unfit)
                    unfit, task = link.flush(unfit[0]), link.task
                if task is not attended and task is link.task:  # one behind others is heard when they are
                    self._crew.inbox.watch(link)
            except OSError as error:
                self._crew.call(self._crew.endings.give_up, link, f"it does not read its socket: {error}")

    def pin(self, task: Task) -> None:
        """Locked. Queue a task of our own, for the worker that it is pinned to."""
        self._tasks[task.job.id] = task
        self._scheduler.add(task, first=True)

    def _reject(self, link: WorkerLink, task: Task, why: Exception) -> None:
        """A task that can't be sent at all: its worker is free for the next."""
        with self._lock:
            if not self.flight.strike(link, task):
                pass
            elif missing(task.work.refs, link):  # lost since it was chosen
                self.requeue([task])
            else:
                self.finish(task, error=ValidationError(f"{task.work.op_type}: {why}"))
            self._scheduler.free(link)
            started = self.assign()
        self.send(started)

    def runner_of(self, task: Task) -> WorkerLink | None:
        """Locked. The worker that runs it; None: it waits, or has ended."""
        link = task.job._runner
        return link if link is not None and link.task is task else None

    def _withdraw(self, task: Task, error: VortexError) -> None:
        """Locked. End a task that no worker runs."""
        link = task.job._runner
        if link is None:
            self._scheduler.remove(task)
        elif not task.job.done():
            self.flight.pass_over(link, task)
        self.finish(task, error=error)

    def finish(self, task: Task, outputs: Outputs | None = None, error: VortexError | None = None) -> None:
        """Locked. End a job, unless it has ended."""
        if self._tasks.get(task.job.id) is task:  # else it has, or is what was left behind of one that was taken back
            if task.timer is not None:
                self._crew.call(task.timer.cancel)  # it would hold the job's outputs until the deadline
            self.tell()  # one that was queued leaves some room behind it
            try:
                task.job._end(outputs, error)
            finally:  # also when its callback is interrupted; one that did not come to its end is set right by `Amends`
                if task.job.state in ENDS:
                    self._tasks.pop(task.job.id, None)

    def requeue(self, tasks: list[Task]) -> None:
        """Locked. Have tasks that were given to a worker wait again, before others, in their order."""
        for task in reversed(tasks):
            if task.cancelled:
                self.finish(task, error=Cancelled("cancelled; its worker died meanwhile"))
            elif not task.job.done():
                task.job.state = JobState.QUEUED
                task.job._runner = task.sender = None
                self._scheduler.add(task, first=True)

    # ------------------------------------------------- what a worker answers

    def take_progress(self, link: WorkerLink, message: protocol.JobProgress) -> None:
        """Raises ProtocolError, InvalidHandle: the worker has no such job, or its preview can't be believed."""
        task = link.task
        if task is None or message.job_id != task.job.id:
            raise ProtocolError(f"progress of job {message.job_id}, which this worker does not run")
        link.activity = (link.activity[0], monotonic_ns())  # other workers can write its slot, but not this
        preview = None
        if message.malformed is not None:
            raise message.malformed
        if message.preview is not None:
            preview = Stored.receive(message.preview, task.work, link, self._arena)
        task.job._report(Progress(message.step, message.total, protocol.printable(message.message, 1000)), preview)
        if link.lease.dropped:
            self._crew.release(link)  # previews that nobody looks at any more: else the next find no place

    def take_result(self, link: WorkerLink, message: protocol.JobResult) -> None:
        """End the job of a worker.

        Raises:
            ProtocolError, InvalidHandle: it can't be believed.
        """
        with self._lock:
            task = link.task
            if task is None or message.job_id != task.job.id:
                raise ProtocolError(f"a result of job {message.job_id}, which this worker does not run")
            outputs: Outputs | None = None
            error: VortexError | None = message.error
            if error is None:
                try:
                    outputs = Outputs.receive(message, task.work, link, self._arena)
                except JobError as bad:
                    task.ending = bad  # what the job's caller is told when the lying worker is dead
                    raise
            if isinstance(error, DeadlineExceeded) and 0 < task.deadline <= monotonic_ns():
                error = exceeded(task)  # the worker knows less of it
            if error is None and (self._scheduler.waiting or link.ahead):
                self.flight.learn(task.work.op_type, sum(message.timings))
            if not link.ahead:
                link.task = None
                self._scheduler.free(link)
            elif self.flight.advance(link):
                self._scheduler.free(link)
            link.jobs_done += self._tasks.get(task.job.id) is task  # not what was taken back, and ran elsewhere
            if link.retiring:
                self._crew.call(self._crew.endings.dismiss, link)
            task.job.timings = Timings(*message.timings)
            if isinstance(error, ObjectLost) and task.retries > 0 and task.work.refs:
                # The worker dropped what it could, for memory was short: make it again, and try again.
                task.retries -= 1
                for ref in task.work.refs:
                    if ref.lineage is not None:
                        link.preloaded.pop(ref.lineage, None)
                    if ref.home is link:
                        ref.lose()
                self.requeue([task])
            else:
                self.finish(task, outputs, error)
            started = self.assign()
            if link.unsent:
                started.append((link, None))
        self.send(started)

    # ------------------------------------------------------ a worker's death

    def rescue(self, link: WorkerLink) -> bool:
        """Locked. At the first sign of a death: try its job elsewhere, if how it died can't matter.

        False: it can, or there would be no other try; wait for the kernel's word.
        """
        task = link.task
        # Denied calls come by the listener, before any death. A fault in an input is the node's own doing.
        if task is not None and (task.retries == 0 or task.ending or link.slot.snapshot().fault_address):
            return False
        link.lost = True
        self.requeue(self.flight.take_all(link))
        if task is not None:
            link.task, link.retried = None, task
            task.retries -= 1
            self.requeue([task])
        self._place_anew(link)
        return True

    def bury(self, link: WorkerLink, status: int | None) -> None:
        """Locked. A worker is dead, and how is known: end its job, or try it again."""
        link.lost = True  # before its slot, which explains how it died, is cleared
        self.requeue(self.flight.take_all(link))
        task, link.task = link.task, None
        if task is not None:
            error, retry = explain_death(task, link, status)
            if retry and task.retries > 0 and not (self._crew.closing or task.job.done()):
                task.retries -= 1
                self.requeue([task])
            else:
                self.finish(task, error=exhausted(error, task))
        retried, link.retried = link.retried, None
        if retried is not None:
            self._convict(retried, *explain_death(retried, link, status))
        self._place_anew(link)

    def _convict(self, task: Task, error: VortexError, retry: bool) -> None:
        """A job was tried again at the first sign of a death, and now it shows that it should not have been."""
        if retry or task.job.done():
            return
        link = self.runner_of(task)
        if link is None:
            self._withdraw(task, error)
        else:
            task.ending = error
            self._crew.endings.kill(link)

    def _place_anew(self, link: WorkerLink) -> None:
        """What waited for a worker that is gone."""
        for waiting in self._scheduler.evict(link):
            if waiting.pinned is link:
                self.finish(waiting, error=WorkerLost(f"worker {link.worker_id} died before it ran"))
            else:
                self._scheduler.add(waiting)

    # -------------------------------------------------------------- the end

    def fail_queued(self, error: type[VortexError], why: str) -> None:
        """Locked. No worker will come for those that wait."""
        for task in self._scheduler.drain():
            self.finish(task, error=error(f"{task.work.op_type} can't run: {why}"))

    def fail_all(self, error: VortexError, *, running: bool) -> None:
        """Locked. End every job, or all but those that a worker runs."""
        self._scheduler.drain()
        self._room.ring()
        spared = set() if running else {link.task.job.id for link in self._crew.links() if link.task}
        for job_id, task in list(self._tasks.items()):
            if job_id not in spared:
                self.finish(task, error=error)

    # ------------------------------------------- the fabric's thread: deadlines

    def arm_deadline(self, task: Task) -> None:
        """End it when it is due."""
        delay = (task.deadline - monotonic_ns()) / 1e9
        with self._lock:
            if not task.job.done():
                task.timer = self._crew.loop.call_later(max(0.0, delay), self._on_deadline, task)

    def _on_deadline(self, task: Task) -> None:
        with self._lock:
            if task.job.done():
                return
            error = exceeded(task)
            if self.runner_of(task) is None:
                self._withdraw(task, error)
                return
        # The node looks at the deadline itself, at its progress reports; one that makes none is killed.
        self._crew.loop.call_later(self._grace, self._end_by_force, task, error)

    def _end_by_force(self, task: Task, error: VortexError) -> None:
        with self._lock:
            link = self.runner_of(task)
            if link is not None and not task.job.done():
                task.ending = error
                self._crew.endings.kill(link)
