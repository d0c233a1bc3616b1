"""One worker as the supervisor knows it: process, socket, lease, slot, and what it is doing.

Everything that comes from the worker is checked here before anything believes it. Methods run
under the fabric's lock, except those that send (a lock of their own) and those that receive (``reading``).
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from enum import Enum
from typing import TYPE_CHECKING, Any

from vortex_worker._core.framing import FrameSocket
from vortex_worker._core.process import cpu
from vortex_worker._core.slots import FREE, Slot
from vortex_worker.errors import LaunchError, ProtocolError
from vortex_worker.ipc import control_pb2 as pb
from vortex_worker.ipc import protocol
from vortex_worker.logging import LEVELS, LineReader, one_line
from vortex_worker.shm.slots import STANDS_BY, TAKES_JOBS, SlotView, write_role
from vortex_worker.supervisor.denial import Denial, Listener

if TYPE_CHECKING:
    from asyncio import TimerHandle

    from vortex_worker._core.arena import Arena
    from vortex_worker.config import WorkerConfig
    from vortex_worker.supervisor.memory import Lease
    from vortex_worker.supervisor.outputs import Outputs
    from vortex_worker.supervisor.process import Verdict, WorkerProcess
    from vortex_worker.supervisor.rest import Rest
    from vortex_worker.supervisor.task import Task, Work

_SEND_TIMEOUT = 2.0  # s; a worker that doesn't read for so long is broken
_RELEASES = 128  # of each kind in one frame: so that the smallest limit takes it, and it is sent whole or not at all
_SMALL = 4096  # bytes of a frame that is sent to a worker which runs a job: the kernel takes it whole, or not at all
_UNREAD = 1 << 16  # releases that may wait for a worker to read
_MAX_HANDSHAKE = 4 << 20  # bytes: parsed, a message can take 50 times the room
_FILTERS = 2  # bootstrap and execute; beside a listener also the seal
_TURNS, _MOST_TURNS, _CALM = 32, 1024, 0.1  # frames, frames, s: see _part
_LOG_TAIL = 40  # lines kept, to explain a failed start
log = logging.getLogger("vortex_worker")
worker_log = logging.getLogger("vortex_worker.worker")


class Stage(Enum):
    """How far a worker is in its life; it never goes back."""

    LAUNCHED = 0
    JOINED = 1  # it has a slot and a lease
    LOCKED = 2  # the kernel confirmed its sandbox
    READY = 3  # it takes jobs
    GONE = 4


class WorkerLink:
    """The supervisor's side of one worker."""

    def __init__(self, index: int, config: WorkerConfig, process: WorkerProcess, arena: Arena, lease: Lease) -> None:
        self.index = index
        self.worker_id = config.worker_id
        self.config = config
        self.process = process
        self.lease = lease
        self.arena = arena
        self.slot = Slot(arena, index)
        self.slot.clear()
        self.stage = Stage.LAUNCHED
        self.started = time.monotonic()
        self.task: Task | None = None
        self.ahead: deque[Task] = deque()  # to be run after that, in order; see flight.py
        self.load = 0  # ns that those are expected to take
        self.unsent: deque[Task | int] = deque()  # jobs, and numbers of jobs ahead that are cancelled, in order
        self._large = 0  # the job of it that was found too large to go before its turn
        self.guarded = False  # it is looked at soon, whether those ahead must be taken back
        self.retried: Task | None = None  # the job it had when it was taken for dead, which runs elsewhere
        self.verdict: Verdict | None = None
        self.report = pb.SandboxReport()
        self.capabilities = pb.Capabilities()
        self.plugin_errors: list[pb.PluginError] = []
        self.dropped_objects: deque[int] = deque()
        self._released: deque[int] = deque()  # offsets that are no longer live, and not told yet
        self.log_tail: deque[str] = deque(maxlen=_LOG_TAIL)
        self.refusal = ""  # a setting that it refuses, in its words: from before it ran anybody's code
        self.fault = ""  # why the supervisor gave it up, if it did
        self.listener: Listener | None = None
        self.denial: Denial | None = None  # the call that it was denied, and dies of
        self.refused = 0  # such calls that were answered
        self.learning = False  # denied calls are let through, to learn from them
        self.timer: TimerHandle | None = None  # until it must be ready
        self.lost = False  # it is taken for dead: whatever was in it is gone
        self.dying = False  # it is being killed, or has hung up: it gets no more jobs
        self.active = False
        self.prepared = False  # it is ready, and what is wanted in advance is there
        self.preloaded: dict[Work, Outputs] = {}  # by the work that made it
        self.activity = (0, 0)  # last seen count of the slot, and since when, ns
        self.retiring = False  # it is replaced when its job has ended
        self.memory = 0  # bytes of its own when it became ready
        self.ended = False  # the pidfd says so
        self.jobs_done = 0
        # Who holds it reads the socket and acts on what it gets; see inbox.py. It knows its holder, who lets it go
        # without knowing whether Ctrl-C came before it was told that it had got it.
        self.reading = threading.RLock()
        self.watched = False  # the fabric's thread may be told when there is something to read
        self.rest: Rest | None = None  # since it was last seen idle
        self.unread = False  # there was more than was taken at once
        #: Its frames. Who sends holds the lock for that; who receives, ``reading``.
        self.socket = FrameSocket(process.socket_fd, config.max_frame)
        self.socket.spin()
        self._turns, self._parted = _TURNS, 0.0  # see _part
        self._send_lock = threading.Lock()
        self._encoder = protocol.Encoder()
        self._lines = LineReader(self._log_line)

    @property
    def alive(self) -> bool:
        return self.stage is not Stage.GONE

    @property
    def ready(self) -> bool:
        """Whether it runs jobs, or could at once."""
        return self.prepared and not self.dying

    @property
    def free(self) -> bool:
        """Whether it could be sent a job, if only one that belongs to it."""
        return self.stage is Stage.READY and self.task is None and not self.dying and not self.retiring

    @property
    def active(self) -> bool:
        """Whether it is given jobs; else it stands by."""
        return self._active

    @active.setter
    def active(self, active: bool) -> None:
        self._active = active
        write_role(self.arena.fd, self.index, TAKES_JOBS if active else STANDS_BY)

    @property
    def idle(self) -> bool:
        """Whether it can take any job."""
        return self._active and self.free

    @property
    def lags(self) -> bool:
        """Whether it has begun with a job ahead, by its own word, and the result before that was not heard yet."""
        task = self.task
        return task is not None and bool(self.ahead) and self.slot.job_id not in (0, task.job.id)

    # ---- out

    def send(self, **body: Any) -> None:
        """Send one packet; releases that have come up go first.

        Raises:
            OSError: the worker is gone, or not reading.
        """
        with self._send_lock:
            self._send_releases(_SEND_TIMEOUT)
            self._send(self._encoder.encode(**body))

    def flush(self, struck: Task | None = None) -> tuple[Task, Exception] | None:
        """Send what is ``unsent``, but for ``struck``; releases that have come up go first.

        While the worker runs a job, it may not read for long: then only what is small goes, if its socket has room, and
        the rest when it has come to it.

        Returns:
            a job that can't travel, and why; None: there is none. The rest waits until that is ``struck``, or its
            worker would answer for a job that is not its turn.

        Raises:
            OSError: the worker is gone, or not reading.
        """
        with self._send_lock:
            unsent, sent = self.unsent, False  # another takes its place when the worker is dead
            if unsent and unsent[0] is struck:
                unsent.popleft()
            while unsent:
                task, running = unsent[0], self.task
                if isinstance(task, int):
                    due, frame = False, self._encoder.encode(job_cancel=pb.JobCancel(job_id=task))
                else:
                    due = task is running or (running is not None and running.job.id == task.job.id)
                    if not due and task.job.id == self._large:
                        break
                    try:
                        frame = task.work.message(self._encoder, task.job.id, task.deadline, self)
                    except (TypeError, ValueError) as error:
                        return task, error
                    if not due and len(frame) > _SMALL:
                        self._large = task.job.id
                        break
                timeout = _SEND_TIMEOUT if due else 0.0
                try:
                    if self._released or self.dropped_objects or self.lease.dropped:
                        self._send_releases(timeout)
                    self._send(frame, timeout)
                except TimeoutError:
                    if due:
                        raise
                    break
                except ValueError as error:
                    assert not isinstance(task, int)
                    return task, ValueError(f"{error}; give large data as tensors")
                unsent.popleft()
                sent = True
            if sent and self.socket.crowded(self._turns) and not self.dying:
                self._part()
            return None

    def flush_releases(self) -> None:
        """Tell the worker what is no longer needed, if there is any. Never waits: what it has no room for goes later.

        Raises:
            OSError: the worker is gone, or too much waits for it to read.
        """
        with self._send_lock:
            try:
                self._send_releases(0)
            except TimeoutError:
                if len(self._released) + len(self.dropped_objects) > _UNREAD:
                    raise

    def _send_releases(self, timeout: float) -> None:
        """In frames of a few: how many there are, and how large their numbers, is the worker's choice."""
        if self.lease.dropped:
            self._released.extend(self.lease.collect())
        while self._released or self.dropped_objects:
            offsets, objects = _first(self._released), _first(self.dropped_objects)
            self._send(self._encoder.release(offsets, objects), timeout)
            for _ in offsets:
                self._released.popleft()
            for _ in objects:
                self.dropped_objects.popleft()

    def _send(self, frame: bytes, timeout: float = _SEND_TIMEOUT) -> None:
        if self.socket.closed:  # it died after it was chosen
            raise ConnectionResetError(f"worker {self.worker_id} is gone")
        self.socket.send(frame, timeout=timeout)

    # ---- in

    def receive(self, most: int = sys.maxsize) -> Iterator[protocol.Message]:
        """Whatever messages have come in, up to ``most``; ``unread`` says whether there are more.

        Raises, after those that came before:
            ProtocolError: bytes that are no packets, or no handshake while one is due.
            OSError: the connection broke.
        """
        if self.stage is Stage.JOINED and self.listener is None:
            # Still trusted: what comes next is its LOCKED handshake, and the listener beside its first byte.
            descriptor = self.socket.peek_descriptor()
            if descriptor >= 0:
                self.listener = Listener(descriptor)
        self.unread = False
        bodies = self.socket.poll(most)
        self.unread = self.socket.more
        for body in bodies:
            if self.stage is not Stage.READY and len(body) > _MAX_HANDSHAKE:
                raise ProtocolError(f"a packet of {len(body)} bytes: a handshake has {_MAX_HANDSHAKE} at most")
            yield protocol.read(body)

    def wait(self, timeout: float | None) -> protocol.Message | None:
        """The next message; None: there are no more. Raises as ``receive``, and TimeoutError, an OSError."""
        try:
            body = self.socket.recv(timeout)
        except ValueError:  # it was closed
            return None
        return None if body is None else protocol.read(body)

    def _part(self) -> None:
        """Let it go to another CPU. By a thread that has just sent.

        The kernel brings them together where one has slept and the other has woken it, and in a virtual machine leaves
        them so for tenths of a second, although another CPU is idle: one that has halted looks to it as if the host had
        given it to somebody else (``vcpu_is_preempted``). Where parting does not last, it is tried ever more rarely.
        """
        now = time.monotonic()
        self._turns = _TURNS if now - self._parted > _CALM else min(2 * self._turns, _MOST_TURNS)
        self._parted = now
        self.process.leave(cpu())

    def shake_hands(self, message: pb.Handshake) -> None:
        """Take one of the worker's three handshakes, in their order.

        Raises:
            ProtocolError: another one than is due, or not from the process that was launched.
            LaunchError: the kernel does not confirm its sandbox.
        """
        phases = pb.Handshake
        due = {
            Stage.LAUNCHED: phases.JOINING, Stage.JOINED: phases.LOCKED, Stage.LOCKED: phases.READY,
        }.get(self.stage)  # fmt: skip
        if message.phase != due:
            raise ProtocolError(f"handshake phase {message.phase} is not due in stage {self.stage.name}")
        if message.phase == phases.JOINING:
            if message.protocol_version != protocol.PROTOCOL_VERSION:
                reason = (
                    f"worker speaks protocol version {message.protocol_version}, "
                    f"this supervisor {protocol.PROTOCOL_VERSION}"
                )
                self.send(handshake_ack=pb.HandshakeAck(accepted=False, reason=reason))
                raise ProtocolError(reason)
            if message.pid != self.process.pid:
                raise ProtocolError(f"handshake is from pid {message.pid}, launched was {self.process.pid}")
            self.send(
                handshake_ack=pb.HandshakeAck(
                    accepted=True,
                    slot=self.index,
                    lease_offset=self.lease.offset,
                    lease_size=self.lease.size,
                    heartbeat_ms=self.config.heartbeat_ms,
                    max_frame=self.config.max_frame,
                )
            )
            self.stage = Stage.JOINED
        elif message.phase == phases.LOCKED:
            self.report = message.sandbox
            if (self.listener is None) == ("listener" in self.report.layers):
                raise ProtocolError("its report and the descriptor beside it disagree about a listener")
            if self.listener is None and self.learning:
                raise LaunchError("nothing can be learned here: a filter's listener can't be had")
            self.capabilities = message.capabilities
            self.stage = Stage.LOCKED
        else:
            self.verdict = self.process.verify()
            if self.process.exiting():  # of the dead the kernel says nothing: that is no failure of the sandbox
                raise ConnectionResetError(f"worker {self.worker_id} died")
            if not self.verdict.holds(_FILTERS + bool(self.listener)) and not self.config.allow_unsandboxed:
                raise LaunchError(f"the kernel does not confirm the worker's sandbox: {self.verdict}")
            self.capabilities = message.capabilities
            self.plugin_errors = list(message.plugin_errors)
            self.stage = Stage.READY

    def read_log(self) -> bool:
        """Pass on what the worker wrote to its log. False at its end."""
        try:
            data = os.read(self.process.log_fd, 1 << 16)
        except BlockingIOError:
            return True
        if data:
            self._lines.feed(data)
        return bool(data)

    def read_rest(self) -> None:
        """Pass on all that is left of the log of a process that has ended."""
        for _ in range(16):  # at most 1 MiB: a grandchild can't exist, but be bounded
            if self.process.log_fd < 0 or not self.read_log():
                break

    def _log_line(self, line: str) -> None:
        self.log_tail.append(line)
        level, text = logging.INFO, line
        if line.startswith('{"time"'):
            try:
                entry = json.loads(line)
                level = LEVELS.get(entry["level"], logging.INFO)
                text = one_line(f"{entry['event']} {entry['fields']}")  # JSON has escapes of its own
                if entry["event"] == "worker.config" and self.stage.value < Stage.LOCKED.value:
                    self.refusal = one_line(str(entry["fields"]["message"]))
                    level = logging.INFO  # who launched it is told
            except (ValueError, KeyError, TypeError, RecursionError):
                pass  # a node printed something alike: pass it on as it is
        worker_log.log(level, "%s: %s", self.worker_id, text)

    def blame(self, why: str) -> None:
        """It broke the rules, or does not answer: nothing that it says counts any more. Any thread."""
        if self.alive and not self.fault:
            self.fault = why
            log.warning("worker %s is killed: %s", self.worker_id, why)

    def kill(self) -> None:
        """End the process. What follows, follows from its exit."""
        self.dying = True
        self.process.kill()
        self.socket.stop_receiving()  # wakes who waits for an answer

    def describe(self) -> dict[str, Any]:
        """What it is and does, as plain data."""
        task, verdict = self.task, self.verdict
        return {
            "id": self.worker_id,
            "pid": self.process.pid,
            "slot": self.index,
            "stage": self._stage(),
            "job": task.job.id if task else None,
            "jobs_done": self.jobs_done,
            "heartbeat_age_s": SlotView.of(self.index, self.slot.snapshot()).silence(),
            "memory_bytes": self.process.memory(),
            "sandbox": {
                "policy": self.report.policy,
                "layers": list(self.report.layers),
                "landlock_abi": self.report.landlock_abi,
                "filter_sha256": self.report.filter_hash,
                "enforced": bool(verdict and verdict.holds(_FILTERS + bool(self.listener))) and not self.learning,
                "learning": self.learning,
                "kernel": verdict._asdict() if verdict else None,
            },
        }

    def _stage(self) -> str:
        if self.stage is not Stage.READY or self.active:
            return self.stage.name.lower()
        return "standby" if self.prepared else "preloading"

    # ---- end

    def close(self) -> None:
        """Mark it gone and give back socket and descriptors. The process must have been reaped."""
        self.stage = Stage.GONE
        self.lost = True
        self.preloaded.clear()
        self.read_rest()
        self._lines.close()
        self.socket.close()
        if self.listener is not None:
            self.listener.close()
        self.process.close()
        self.slot.clear()
        self.slot.set_status(FREE)


def _first(waiting: deque[int]) -> list[int]:
    """Not by iterating: any thread may add to it meanwhile."""
    return [waiting[index] for index in range(min(len(waiting), _RELEASES))]
