"""The workers of one fabric: their life from launch to death, and the jobs between.

One thread runs an asyncio loop over every worker's socket, pidfd and log. Callers send their jobs
from their own threads when a worker is idle; results come in through the loop. ``_lock`` guards
all state; nothing that can block on a worker is done under it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from vortex_worker._core.process import signal_thread
from vortex_worker._core.slots import monotonic_ns
from vortex_worker.errors import (
    Cancelled,
    DeadlineExceeded,
    FabricClosed,
    JobError,
    LaunchError,
    ObjectLost,
    OutOfArena,
    ProtocolError,
    QueueFull,
    ValidationError,
    VortexError,
    WorkerLost,
)
from vortex_worker.ipc import control_pb2 as pb
from vortex_worker.ipc import protocol
from vortex_worker.supervisor.deathwatch import DeathWatch
from vortex_worker.supervisor.job import Job, JobState, Progress, Timings
from vortex_worker.supervisor.link import Stage, WorkerLink
from vortex_worker.supervisor.nursery import Nursery
from vortex_worker.supervisor.objects import ObjectRef
from vortex_worker.supervisor.outputs import Outputs
from vortex_worker.supervisor.process import WorkerProcess, describe_exit
from vortex_worker.supervisor.recovery import Backoff, exhausted, explain_death
from vortex_worker.supervisor.scheduler import Scheduler, missing
from vortex_worker.supervisor.task import Task

if TYPE_CHECKING:
    from vortex_worker.config import WorkerConfig
    from vortex_worker.supervisor.memory import Lease, Memory

log = logging.getLogger("vortex_worker")

_LAST_WORDS = 0.05  # s that a worker has to say where its denied call came from
_STARVATION = 5.0  # s without any worker, for want of a lease, after which queued jobs are told
_LOOK, _LOOKS = 0.0002, 20  # s between looks at whether a worker is really dying, and how often
_TICK = 0.5  # s between looks at heartbeats and pending releases
_NO_USE = (2, 4)  # a worker's exit status when its settings are wrong, or the machine lacks a layer of the sandbox


class Crew:
    """Launches, watches, feeds and replaces the workers."""

    def __init__(
        self,
        config: WorkerConfig,
        workers: int,
        standby: int,
        memory: Memory,
        *,
        zygote: bool,
        queue: int,
        grace: float,
        heartbeat_timeout: float,
        stall_timeout: float,
        memory_growth: int,
        start_timeout: float,
    ) -> None:
        self._config = config
        self._memory = memory
        self._queue_limit = queue
        self._grace = grace
        self._heartbeat_timeout = heartbeat_timeout
        self._stall_timeout = stall_timeout
        self._memory_growth = memory_growth
        self._draining = False
        self._start_timeout = start_timeout
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._scheduler = Scheduler()
        self._ids = itertools.count(1)
        self._tasks: dict[int, Task] = {}  # every job that has not ended, by id
        self._workers = workers
        self._links: list[WorkerLink | None] = [None] * (workers + standby)
        self._launched = 0
        self._starts = Backoff()
        self._proven = False  # that a worker can start as we are configured
        self._starving = 0  # since when no lease can be had, ns; 0: they can
        self._broken: VortexError | None = None
        self._closing = False
        self._close_lock = threading.Lock()
        self.loop = asyncio.new_event_loop()
        self.loop.set_exception_handler(self._unexpected)
        self._nursery = Nursery(self, diffusion=bool(config.models)) if zygote else None
        self._deathwatch = DeathWatch(lambda link: self.call(self._on_sign_of_death, link))
        self._thread = threading.Thread(target=self._serve, name="vortex-fabric", daemon=True)
        self._thread.start()
        if self._nursery is not None:
            self.loop.call_soon_threadsafe(self._nursery.open)
        for index in range(workers + standby):
            self.loop.call_soon_threadsafe(self._launch, index)
        self.loop.call_soon_threadsafe(self._tick)

    # ------------------------------------------------------- any thread: jobs

    def next_id(self) -> int:
        """A job id, never used before in this fabric."""
        return next(self._ids)

    def submit(self, task: Task, *, block: bool = True, timeout: float | None = None) -> None:
        """Queue a task, or send it at once where a worker is idle.

        Raises:
            FabricClosed, LaunchError: it can never run.
            QueueFull: the queue is full, and stayed so for ``timeout`` s (at once unless ``block``).
        """
        with self._lock:
            if len(self._scheduler) >= self._queue_limit:
                room = self._changed.wait_for(
                    lambda: self._closing or self._broken or len(self._scheduler) < self._queue_limit,
                    timeout if block else 0,
                )
                if not room:
                    raise QueueFull(f"{self._queue_limit} jobs wait already")
            self.check_open()
            if self._draining:
                raise FabricClosed("the fabric takes no more jobs: it is being drained")
            self._tasks[task.job.id] = task
            self._scheduler.add(task)
            started = self._assign()
        self._send_jobs(started)
        if task.deadline:
            self.call(self._arm_deadline, task)

    def cancel(self, job: Job) -> None:
        """End a job: at once where it waits, through its worker where it runs."""
        with self._lock:
            task = self._tasks.get(job.id)
            if task is None:
                return
            link = self._runner_of(task)
            if link is None:
                self._scheduler.remove(task)
                self._finish(task, error=Cancelled("cancelled before it ran"))
                return
        self._send_or_lose(link, job_cancel=pb.JobCancel(job_id=job.id))
        error = Cancelled(f"cancelled; the node did not stop within {self._grace} s and its worker was killed")
        self.call(self.loop.call_later, self._grace, self._end_by_force, task, error)

    def wait(self, ready: Callable[[list[WorkerLink]], bool], timeout: float | None) -> list[WorkerLink]:
        """Wait until ``ready(links)`` holds, and return the links.

        Raises:
            FabricClosed, LaunchError: it never will.
            TimeoutError: not within ``timeout`` s.
        """

        def settled() -> bool:
            return self._closing or self._broken is not None or ready(self.links())

        with self._lock:
            if not self._changed.wait_for(settled, timeout):
                raise TimeoutError(f"workers are not ready after {timeout} s")
            self.check_open()
            return self.links()

    def drain(self, timeout: float | None) -> None:
        """Take no more jobs, and wait until those there are have ended. TimeoutError: they have not."""
        with self._lock:
            self._draining = True
            self._changed.notify_all()
            if not self._changed.wait_for(lambda: not self._tasks, timeout):
                raise TimeoutError(f"{len(self._tasks)} jobs have not ended within {timeout} s")

    def reload(self, timeout: float | None) -> None:
        """Replace every worker, each when its job has ended. TimeoutError: not all are replaced yet."""
        with self._lock:
            old = set(self.links())
            for link in old:
                link.retiring = True
                if link.task is None:
                    self.call(self._dismiss, link)
        self.wait(lambda links: old.isdisjoint(links) and self.all_ready(links), timeout)

    def changed(self) -> None:
        """Wake who waits for a change."""
        with self._lock:
            self._changed.notify_all()

    def links(self) -> list[WorkerLink]:
        """The workers there are now, by slot."""
        with self._lock:
            return [link for link in self._links if link is not None]

    def all_ready(self, links: list[WorkerLink]) -> bool:
        """Whether every worker takes jobs, and every standby could."""
        ready = [link for link in links if link.stage is Stage.READY and not link.dying]
        return len(ready) == len(self._links)

    def crew(self) -> tuple[list[WorkerLink], list[WorkerLink]]:
        """Those that run jobs or will as soon as they can, and those that stand by for them."""
        links = sorted(
            (link for link in self.links() if not link.dying),
            key=lambda link: (not link.active, -link.stage.value, link.index),
        )
        return links[: self._workers], links[self._workers :]

    def check_open(self) -> None:
        """Raise FabricClosed or LaunchError if no job can run any more."""
        if self._closing:
            raise FabricClosed("the fabric is closed")
        if self._broken:
            raise self._broken

    # ---------------------------------------------- under the lock: job states

    def _assign(self) -> list[tuple[WorkerLink, Task]]:
        """Give each idle worker its next task. What is returned is to be sent once the lock is free."""
        self._promote()
        started = []
        for link in self._links:
            while link is not None and link.idle and (task := self._scheduler.take(link)):
                lost = missing(task.work.refs, link)
                if lost:
                    self._rebuild(task, lost, link)
                    continue
                link.task = task
                task.job.attempts += 1
                task.job.worker = link.worker_id
                task.job.state = JobState.RUNNING
                started.append((link, task))
        if started:
            self._changed.notify_all()
        return started

    def _promote(self) -> None:
        """Let workers that stand by take the places of those that are gone."""
        places = self._workers - sum(link.active and not link.dying for link in self.links())
        for link in self.links():
            if places > 0 and link.stage is Stage.READY and not link.active and not link.dying:
                link.active = True
                places -= 1

    def _runner_of(self, task: Task) -> WorkerLink | None:
        return next((link for link in self.links() if link.task is task), None)

    def _finish(self, task: Task, outputs: Outputs | None = None, error: VortexError | None = None) -> None:
        if self._tasks.pop(task.job.id, None) is not None:
            task.job._end(outputs, error)
            if task.timer is not None:
                self.call(task.timer.cancel)  # it would hold the job's outputs until the deadline
            self._changed.notify_all()  # one that was queued leaves room behind it

    def _rebuild(self, task: Task, lost: list[ObjectRef], link: WorkerLink) -> None:
        """Make lost objects again in ``link``, then run ``task`` there."""
        hopeless = [ref for ref in lost if ref.lineage is None]
        if hopeless:
            self._finish(task, error=ObjectLost(f"{hopeless[0]!r} is gone, and how it was made is not known"))
            return
        batch = Rebuild(task, len(lost))
        for ref in lost:
            assert ref.lineage is not None
            rebuild = Task(Job(self.next_id(), ref.lineage.op_type, self.cancel), ref.lineage, pinned=link)
            self._tasks[rebuild.job.id] = rebuild
            self._scheduler.add(rebuild, first=True)
            rebuild.job.add_done_callback(partial(self._rebuilt, batch, ref))

    def _rebuilt(self, batch: Rebuild, ref: ObjectRef, job: Job) -> None:
        """One object was made again, or could not be: the last one lets its task go on."""
        with self._lock:
            task = batch.task
            if batch.failed or task.job.done():
                return
            error = batch.settle(ref, job)
            if isinstance(error, WorkerLost) and task.retries > 0:
                task.retries -= 1
            elif error is not None:
                self._finish(task, error=ObjectLost(f"{ref!r} is gone and could not be made again: {error}"))
                return
            elif batch.left:
                return
            self._scheduler.add(task, first=True)
            started = self._assign()
        self._send_jobs(started)

    # ------------------------------------------------------------ sending

    def _send_jobs(self, started: list[tuple[WorkerLink, Task]]) -> None:
        for link, task in started:
            try:
                message = task.work.message(task.job.id, task.deadline)
            except (TypeError, ValueError) as error:
                self._reject(link, task, ValidationError(f"{task.work.op_type}: {error}"))
                continue
            try:
                link.send(job_submit=message)
            except ValueError as error:
                self._reject(link, task, ValidationError(f"{task.work.op_type}: {error}; give large data as tensors"))
            except OSError as error:
                self.call(self._give_up, link, f"it does not read its socket: {error}")

    def _reject(self, link: WorkerLink, task: Task, error: VortexError) -> None:
        """A task that can't be sent at all: its worker is free for the next."""
        with self._lock:
            link.task = None
            self._finish(task, error=error)
            started = self._assign()
        self._send_jobs(started)

    def _send_or_lose(self, link: WorkerLink, **body: Any) -> None:
        try:
            link.send(**body)
        except OSError as error:
            self.call(self._give_up, link, f"it does not read its socket: {error}")

    def call(self, function: Callable[..., object], *args: Any) -> None:
        """Run it in the fabric's thread, unless that has ended."""
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(function, *args)

    # ------------------------------------- the fabric's thread: life and death

    def _serve(self) -> None:
        try:
            self.loop.run_forever()
        finally:
            self.loop.close()

    def _unexpected(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """A bug of ours in a callback: tell every caller rather than leave them waiting."""
        error = context.get("exception")
        log.error("internal error: %s", context.get("message"), exc_info=error)
        self.broken(LaunchError(f"internal error of the fabric: {error!r}"))

    def _launch(self, index: int) -> None:
        with self._lock:
            if self._closing or self._broken:
                return
            self._launched += 1
            config = replace(self._config, worker_id=f"w{index}.{self._launched}")
            try:
                lease = self._memory.hold_lease()
            except OutOfArena as error:
                log.warning("worker %d waits: %s", index, error.message)
                self._starve(error)
                self.loop.call_later(_TICK, self._launch, index)
                return
            self._starving = 0
            self._memory.restore()
            if self._nursery is not None:
                self._nursery.order(index, config, lease, self._memory.arena.fd)
                return
            try:
                process = WorkerProcess.execute(config, self._memory.arena.fd)
            except LaunchError as error:
                self.not_born(index, lease, str(error))
                return
            self.born(index, config, process, lease)

    def _starve(self, error: OutOfArena) -> None:
        """No worker can be had for want of a lease. Who waits for a job may be who keeps them: tell them."""
        now = monotonic_ns()
        self._starving = self._starving or now
        if not self.links() and now - self._starving > _STARVATION * 1e9:
            for task in self._scheduler.drain():
                self._finish(task, error=OutOfArena(f"{task.work.op_type} can't run: {error.message}"))

    def not_born(self, index: int, lease: Lease, why: str) -> None:
        """No process could be had for a worker."""
        with self._lock:
            self._memory.give_back(lease)
            if not self._closing and not self._broken:
                self._start_failed(index, why, None)

    def born(self, index: int, config: WorkerConfig, process: WorkerProcess, lease: Lease) -> None:
        """There is a process: watch it."""
        with self._lock:
            link = WorkerLink(index, config, process, self._memory.arena, lease)
            self._links[index] = link
            if self._closing:
                link.kill()
        self.loop.add_reader(link.fileno(), self._on_readable, link)
        self.loop.add_reader(process.pidfd, self.on_exit, link)
        self.loop.add_reader(process.log_fd, self._on_log, link)
        link.timer = self.loop.call_later(self._start_timeout, self._check_started, link)

    def _on_log(self, link: WorkerLink) -> None:
        if not link.read_log():
            self.loop.remove_reader(link.process.log_fd)

    def _on_readable(self, link: WorkerLink) -> None:
        try:
            for packet in link.receive():
                self._handle(link, packet)
        except (JobError, LaunchError) as error:
            self._give_up(link, str(error))
        except OSError:
            pass  # reset by its death, which the pidfd reports
        if link.hung_up and link.alive:
            self.loop.remove_reader(link.fileno())
            link.kill()  # it may have closed the socket and live on; on_exit follows either way

    def _handle(self, link: WorkerLink, packet: pb.ControlPacket) -> None:
        if link.denial is not None or link.lost:
            return  # whatever it says after that
        kind = packet.WhichOneof("body")
        if kind == "job_result":
            self._take_result(link, packet.job_result)
        elif kind == "job_progress":
            self._take_progress(link, packet.job_progress)
        elif kind == "handshake":
            with self._lock:
                link.shake_hands(packet.handshake)
                if link.stage is Stage.LOCKED and link.listener is not None:
                    self.loop.add_reader(link.listener.fd, self._on_denied, link)
                if link.stage is Stage.READY:
                    self._starts.succeeded()
                    self._proven = True
                    link.memory = link.process.memory()
                    self._deathwatch.add(link)
                    if link.retiring:
                        self.call(self._dismiss, link)
                started = self._assign()
                self._changed.notify_all()
            self._send_jobs(started)
        elif kind == "fault":
            raise ProtocolError(f"it says of our traffic: {protocol.printable(packet.fault.reason, 500)}")
        elif kind != "pong":
            raise ProtocolError(f"a supervisor takes no {kind}")

    def _take_progress(self, link: WorkerLink, message: pb.JobProgress) -> None:
        task = link.task
        if task is None or message.job_id != task.job.id:
            raise ProtocolError(f"progress of job {message.job_id}, which this worker does not run")
        task.job._report(Progress(message.step, message.total, protocol.printable(message.message, 1000)))

    def _take_result(self, link: WorkerLink, message: pb.JobResult) -> None:
        with self._lock:
            task = link.task
            if task is None or message.job_id != task.job.id:
                raise ProtocolError(f"a result of job {message.job_id}, which this worker does not run")
            outputs: Outputs | None = None
            error: VortexError | None = None
            if message.HasField("error"):
                error = protocol.unpack_error(message.error)
            else:
                try:
                    outputs = Outputs.receive(message, task.work, link, self._memory.arena)
                except JobError as bad:
                    task.ending = bad  # what the job's caller is told when the lying worker is dead
                    raise
            link.task = None
            link.jobs_done += 1
            if link.retiring:
                self.call(self._dismiss, link)
            t = message.timings
            task.job.timings = Timings(t.decode, t.map, t.execute, t.save)
            if isinstance(error, ObjectLost) and task.retries > 0 and task.work.refs:
                # The worker dropped what it could, for memory was short: make it again, and try again.
                task.retries -= 1
                for ref in task.work.refs:
                    if ref.home is link:
                        ref.lose()
                self._requeue(task)
            else:
                self._finish(task, outputs, error)
            started = self._assign()
        self._send_jobs(started)

    def _requeue(self, task: Task) -> None:
        task.job.state = JobState.QUEUED
        self._scheduler.add(task, first=True)

    def _on_denied(self, link: WorkerLink) -> None:
        """The kernel holds back a call of this worker, which dies of it."""
        assert link.listener is not None
        denial = link.listener.receive()
        if denial is None:
            if not link.process.runs():
                self.loop.remove_reader(link.listener.fd)  # it hung up, and on_exit follows
        elif link.denial is None:
            link.denial = denial
            link.dying = True
            log.warning("worker %s is killed: its sandbox denied it %s", link.worker_id, denial)
            # Where was it? Its fault handler writes that to its log, and the kernel restarts the call: then, or
            # when it does not answer, for the handler is only its own, it dies.
            if signal_thread(link.process.pid, denial.thread, signal.SIGSYS):
                self.loop.call_later(_LAST_WORDS, link.kill)
            else:
                link.kill()
        else:
            link.kill()

    def _give_up(self, link: WorkerLink, why: str) -> None:
        """Kill a worker that broke the rules or does not answer. ``on_exit`` does the rest."""
        if link.alive and not link.fault:
            link.fault = why
            log.warning("worker %s is killed: %s", link.worker_id, why)
        if link.alive:
            link.kill()

    def _on_sign_of_death(self, link: WorkerLink, looks: int = 0) -> None:
        """Its heartbeat thread has died, or another worker, which can write its slot, wants us to think so.

        Its job is tried again at once, where how it died can't matter. All that was its own, it keeps until
        ``on_exit``.
        """
        if not link.alive or link.dying:
            return  # on_exit is on its way, and knows more
        if not link.process.exiting():  # the kernel's word: other threads end some microseconds later
            if looks < _LOOKS:
                self.loop.call_later(_LOOK, self._on_sign_of_death, link, looks + 1)
            else:
                log.warning("worker %s lives: its sign of life was tampered with", link.worker_id)
            return
        link.kill()
        self._last_words(link)
        with self._lock:
            task = link.task
            # Denied calls come by the listener, before any death. A fault in an input is the node's own doing.
            if task is not None and (task.retries == 0 or task.ending or link.slot.snapshot().fault_address):
                return
            link.lost = True
            if task is not None:
                link.task, link.retried = None, task
                task.retries -= 1
                self._requeue(task)
            self._place_anew(link)
            started = self._assign()
            self._changed.notify_all()
        self._send_jobs(started)

    def _place_anew(self, link: WorkerLink) -> None:
        """What waited for a worker that is gone."""
        for waiting in self._scheduler.evict(link):
            if waiting.pinned is link:
                self._finish(waiting, error=WorkerLost(f"worker {link.worker_id} died before it ran"))
            else:
                self._scheduler.add(waiting)

    def on_exit(self, link: WorkerLink) -> None:
        """The pidfd says that the process is gone: nothing of it runs or writes any more."""
        if not link.ended:
            link.ended = True
            self.loop.remove_reader(link.process.pidfd)
            self._deathwatch.remove(link)
            if self._nursery is not None and not self._nursery.knows_end(link):
                return  # the zygote is about to say how it ended, and then calls this again
        for fd in (link.fileno(), link.process.log_fd, link.listener.fd if link.listener else -1):
            if fd >= 0:
                self.loop.remove_reader(fd)
        link.dying = True
        if link.timer is not None:
            link.timer.cancel()  # it would hold all that the link has
        self._last_words(link)
        status = link.process.reap()
        link.read_rest()  # where a denied call came from
        with self._lock:
            was_ready = link.stage is Stage.READY
            task, link.task = link.task, None
            error, retry = explain_death(task, link, status) if task else (None, False)
            link.close()
            self._links[link.index] = None
            if task is not None and error is not None:
                if retry and task.retries > 0 and not self._closing:
                    task.retries -= 1
                    self._requeue(task)
                else:
                    self._finish(task, error=exhausted(error, task))
            retried, link.retried = link.retried, None
            if retried is not None:
                self._convict(retried, *explain_death(retried, link, status))
            self._place_anew(link)
            started = self._assign()
        self._send_jobs(started)  # first of all: somebody waits for it
        self._replace(link, status, was_ready)

    def _convict(self, task: Task, error: VortexError, retry: bool) -> None:
        """A job was tried again at the first sign of a death, and now it shows that it should not have been."""
        if retry or task.job.done():
            return
        link = self._runner_of(task)
        if link is None:
            self._scheduler.remove(task)
            self._finish(task, error=error)
        else:
            task.ending = error
            link.kill()

    def _replace(self, link: WorkerLink, status: int | None, was_ready: bool) -> None:
        """Give back what a dead worker had, and launch another."""
        with self._lock:
            self._memory.give_back(link.lease)
            self._changed.notify_all()
            if self._closing:
                return
            if was_ready:
                log.info("worker %s: %s; starting another", link.worker_id, describe_exit(status))
                self._launch(link.index)
                return
            why = link.fault or (f"was denied {link.denial}" if link.denial else describe_exit(status))
            said = "\n".join(link.log_tail)
            why = f"worker {link.worker_id} {why}" + (f"; it wrote:\n{said}" if said else "")
            self._start_failed(link.index, why, 1 if link.fault or link.denial else status)

    def _last_words(self, link: WorkerLink) -> None:
        """Results that were sent before the death still count."""
        try:
            for packet in link.receive():
                if packet.WhichOneof("body") == "job_result" and not link.fault and link.denial is None:
                    self._take_result(link, packet.job_result)
        except (JobError, OSError):
            pass  # its death is reported anyway

    def _start_failed(self, index: int, why: str, status: int | None) -> None:
        """A worker ended before it was ready: try again, more slowly each time, and then say so."""
        self._starts.failed(status)
        log.info("a worker did not start: %s", why.splitlines()[0])
        if (status in _NO_USE and not self._proven) or (self._starts.hopeless and not self.any_ready()):
            self.broken(LaunchError(why))
        else:
            self.loop.call_later(self._starts.pause, self._launch, index)

    def any_ready(self) -> bool:
        """Whether there is a worker that takes jobs: then those that can't be started are no reason to stop."""
        return any(link.stage is Stage.READY and not link.dying for link in self.links())

    def broken(self, error: VortexError) -> None:
        """No worker can be had: fail what waits and what comes."""
        with self._lock:
            self._broken = error
            self._scheduler.drain()
            running = {link.task.job.id for link in self.links() if link.task}
            for job_id, task in list(self._tasks.items()):
                if job_id not in running:
                    self._finish(task, error=error)
            for link in self.links():
                if link.stage is not Stage.READY:
                    link.kill()
            self._changed.notify_all()

    # --------------------------------------------- the fabric's thread: clocks

    def _check_started(self, link: WorkerLink) -> None:
        if link.alive and link.stage is not Stage.READY:
            self._give_up(link, f"it was not ready within {self._start_timeout} s")

    def _arm_deadline(self, task: Task) -> None:
        delay = (task.deadline - monotonic_ns()) / 1e9
        with self._lock:
            if not task.job.done():
                task.timer = self.loop.call_later(max(0.0, delay), self._on_deadline, task)

    def _on_deadline(self, task: Task) -> None:
        with self._lock:
            if task.job.done():
                return
            error = DeadlineExceeded(f"{task.work.op_type}: its deadline passed after {task.job.attempts} attempts")
            if self._runner_of(task) is None:
                self._scheduler.remove(task)
                self._finish(task, error=error)
                return
        # The node looks at the deadline itself, at its progress reports; one that makes none is killed.
        self.loop.call_later(self._grace, self._end_by_force, task, error)

    def _end_by_force(self, task: Task, error: VortexError) -> None:
        with self._lock:
            link = self._runner_of(task)
            if link is not None and not task.job.done():
                task.ending = error
                link.kill()

    def _dismiss(self, link: WorkerLink) -> None:
        """Let a worker go that has nothing to do: it ends by itself, or else by force."""
        with self._lock:
            if link.dying or link.task is not None or link.stage is not Stage.READY:
                return
            link.dying = True
            started = self._assign()
        self._send_jobs(started)
        self._send_or_lose(link, shutdown=pb.Shutdown(reason="another takes its place"))
        self.loop.call_later(self._grace, self._end_dismissed, link)

    def _end_dismissed(self, link: WorkerLink) -> None:
        if link.alive:
            link.kill()

    def _check_activity(self, link: WorkerLink) -> None:
        count, now = link.slot.activity, monotonic_ns()
        if link.task is None or count != link.activity[0]:
            link.activity = (count, now)
        elif now - link.activity[1] > self._stall_timeout * 1e9:
            self._give_up(link, f"it is alive, but its node made no progress for {self._stall_timeout} s")

    def _check_memory(self, link: WorkerLink) -> None:
        with self._lock:
            grown = link.process.memory() - link.memory
            if self._memory_growth and grown > self._memory_growth and not link.retiring:
                log.warning("worker %s has grown by %d MiB: it is replaced", link.worker_id, grown >> 20)
                link.retiring = True
                if link.task is None:
                    self.call(self._dismiss, link)

    def _tick(self) -> None:
        for link in self.links():
            if link.stage is not Stage.READY:
                continue
            beat = link.slot.heartbeat
            late = beat and monotonic_ns() - beat > self._heartbeat_timeout * 1e9
            if late and link.process.stopped():  # the kernel's word too: another worker can write this one's slot
                self._give_up(link, f"it was stopped: no heartbeat for {self._heartbeat_timeout} s")
            if self._stall_timeout:
                self._check_activity(link)
            if self._memory_growth:
                self._check_memory(link)
            if link.idle:
                with contextlib.suppress(OSError):
                    link.flush_releases()
        if not self._closing:
            self.loop.call_later(
                min(_TICK, self._heartbeat_timeout / 2, (self._stall_timeout or _TICK) / 2), self._tick
            )

    # -------------------------------------------------------- any thread: end

    def close(self) -> None:
        """End every job and every worker, and the thread. Nothing is left behind.

        Idempotent: whoever calls it later, or beside, returns when all is done; one that was
        interrupted may be called again.
        """
        if threading.current_thread() is self._thread:
            raise RuntimeError("a fabric can't be closed from a job's callback, which its own thread runs")
        with self._close_lock:
            if self._thread.is_alive():
                self._end_all()
                if self._nursery is not None:
                    self._nursery.kill()
                    with self._lock:
                        self._changed.wait_for(lambda: self._nursery is None or self._nursery.closed)
                self._deathwatch.close()
                self.call(self.loop.stop)
                self._thread.join()

    def _end_all(self) -> None:
        with self._lock:
            self._closing = True
            self._scheduler.drain()
            for task in list(self._tasks.values()):
                self._finish(task, error=FabricClosed("the fabric was closed before the job ended"))
            links = self.links()
            self._changed.notify_all()
        for link in links:
            if link.idle:
                self._send_or_lose(link, shutdown=pb.Shutdown(reason="the fabric is closing"))
            else:
                link.kill()
        if not self._await_ends(self._grace):
            if self._nursery is not None:
                self._nursery.kill()  # it may be what does not answer
            for link in self.links():
                link.kill()
            self._await_ends(None)

    def _await_ends(self, timeout: float | None) -> bool:
        with self._lock:
            return self._changed.wait_for(
                lambda: not any(self._links) and (self._nursery is None or not self._nursery.orders), timeout
            )


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
