"""The worker's event loop: packets in, jobs run, packets out.

One thread. While a job runs the loop does not, so the job's own progress reports look at the
socket in between (``_cancelled``): a cancellation is seen there, anything else waits its turn.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from vortex_worker._core.slots import DRAINING, IDLE
from vortex_worker.errors import Cancelled, ExecutionError, JobError, ProtocolError
from vortex_worker.ipc import control_pb2 as pb
from vortex_worker.ipc import protocol

if TYPE_CHECKING:
    from vortex_worker._core.framing import FrameSocket
    from vortex_worker._core.handle import TensorHandle
    from vortex_worker._core.slots import Slot
    from vortex_worker.logging import Logger

#: Tensors and objects that a result hands over.
Handles = list["TensorHandle | protocol.ObjectHandle"]

_PROGRESS_INTERVAL = 0.05  # s between two progress frames; the slot's counters are always current
_REST = 1.0  # s without a job after which a worker gives back what it keeps for the next
_EXIT_OK = 0
_EXIT_FAULT = 3  # the supervisor's traffic could not be understood


class Finished(NamedTuple):
    """How a job ended."""

    outputs: dict[str, bytes]  # by port, each as `protocol.pack` gave it
    handles: Handles  # what they hand over
    error: JobError | None  # then there are no outputs
    timings: tuple[int, int, int, int]  # ns: decode, map, execute, save
    retire: bool = False  # the worker must not take another


class Runner(Protocol):
    """What the handler needs of the executing side. ``main.py`` joins the two."""

    def run(self, submit: protocol.JobSubmit, control: JobControl) -> Finished:
        """Run one job."""

    def release(self, offsets: list[int], objects: list[int]) -> None:
        """Forget handles and objects that the supervisor no longer needs."""

    def forget(self, handles: Handles) -> None:
        """Forget what a result would have handed over: it could not be sent."""

    def preview(self, value: Any) -> TensorHandle | None:
        """Hand over a tensor while its job runs. None: there is no room for it."""

    def rest(self) -> None:
        """No job has come for a while."""


class JobControl:
    """What a running job may ask of the loop: to report progress, and whether it was cancelled."""

    def __init__(self, handler: Handler, job_id: int, deadline: int) -> None:
        self.job_id = job_id
        self.deadline = deadline
        self._handler = handler
        self._sent = 0.0

    def report(self, step: int, total: int, message: str, preview: Any = None) -> None:
        """Tell slot and supervisor how far the job is. Frames are sent at most 20 times a second."""
        self._handler.slot.progress(step, total)
        now = time.monotonic()
        if now - self._sent >= _PROGRESS_INTERVAL or step == total:
            self._sent = now
            self._handler.send_progress(self.job_id, step, total, message, preview)

    def cancelled(self) -> bool:
        """Whether a JobCancel for this job has come in. One non-blocking recv."""
        return self._handler.look_for_cancel(self.job_id)


class Handler:
    """Serves one supervisor until it says Shutdown or hangs up."""

    def __init__(self, socket: FrameSocket, slot: Slot, runner: Runner, log: Logger, encoder: protocol.Encoder):
        self.slot = slot
        self._socket = socket
        self._runner = runner
        self._log = log
        self._debug = log.enabled("debug")
        self._encoder = encoder
        self._waiting: deque[protocol.Message] = deque()
        self._cancelled: set[int] = set()
        self._retire = False
        self._rests = True  # and so has nothing to give back
        self._fault: ProtocolError | None = None  # found while a job ran

    def send(self, **body: Any) -> None:
        """Send a packet of any kind."""
        self._socket.send(self._encoder.encode(**body))

    def send_progress(self, job_id: int, step: int, total: int, message: str, preview: Any) -> None:
        """Send a report, with the preview if there is one and room for it."""
        handle = None if preview is None else self._runner.preview(preview)
        self._socket.send(self._encoder.progress(job_id, step, total, message, handle))

    def serve(self, leisure: Iterable[Callable[[], object]] = ()) -> int:
        """Handle packets until the end; before the first, do what there is leisure for. Returns the exit status."""
        self.slot.set_status(IDLE)
        try:
            for work in leisure:
                self._take_in()
                if self._waiting:
                    break
                work()
            while not self._retire:
                message = self._next()
                if message is None:
                    self._log.info("worker.hangup")
                    return _EXIT_OK
                if not self._handle(message):
                    break
                if self._fault is not None:
                    raise self._fault
        except ProtocolError as error:
            self._log.error("worker.fault", reason=error.message)
            self._send_fault(error)
            return _EXIT_FAULT
        except ConnectionError:
            self._log.info("worker.hangup")
        self.slot.set_status(DRAINING)
        return _EXIT_OK

    def _next(self) -> protocol.Message | None:
        if self._waiting:
            return self._waiting.popleft()
        try:
            body = self._socket.recv(None if self._rests else _REST)
        except TimeoutError:
            self._rests = True
            self._runner.rest()
            body = self._socket.recv()
        if body is None:
            return None
        message = protocol.read(body)
        if self._socket.buffered and isinstance(message, protocol.JobSubmit):
            # It may be cancelled by what came together with it.
            self._waiting.append(message)
            self._take_in()
            self._waiting.popleft()
        return message

    def _handle(self, message: protocol.Message) -> bool:
        """Act on one message. False: this was the last."""
        match message:
            case protocol.JobSubmit():
                self._run(message)
            case protocol.Release():
                self._runner.release(message.offsets, message.objects)
            case pb.JobCancel():
                # Of a job that waits behind others; one that has ended already is no error.
                if any(isinstance(m, protocol.JobSubmit) and m.job_id == message.job_id for m in self._waiting):
                    self._cancelled.add(message.job_id)
            case pb.Ping():
                self.send(pong=pb.Pong(nonce=message.nonce))
            case pb.Shutdown():
                self._log.info("worker.shutdown", reason=message.reason)
                return False
            case pb.Fault():
                self._log.error("supervisor.fault", code=message.code, reason=message.reason)
                return False
            case _:
                raise ProtocolError(f"a worker that is ready takes no {type(message).__name__}")
        return True

    def _run(self, submit: protocol.JobSubmit) -> None:
        job_id = submit.job_id
        if job_id == 0:
            raise ProtocolError("a JobSubmit has job_id 0: job ids begin at 1")
        self._rests = False
        self.slot.begin(job_id)
        self._log.job_id = job_id
        if self._debug:
            self._log.debug("job.start", op_type=submit.op_type)
        if job_id in self._cancelled:
            done = Finished({}, [], Cancelled("cancelled before it ran"), (0, 0, 0, 0))
        else:
            done = self._runner.run(submit, JobControl(self, job_id, submit.deadline))
        self._retire = done.retire
        self._cancelled.discard(job_id)
        self.slot.end()
        self._send_result(job_id, done)
        if self._debug:
            code = done.error.code if done.error else None
            self._log.debug("job.done", op_type=submit.op_type, error=code, execute_ms=done.timings[2] / 1e6)
        self._log.job_id = 0

    def _send_result(self, job_id: int, done: Finished) -> None:
        if done.error is not None:
            self._socket.send(self._encoder.failure(job_id, done.error, done.timings))
            return
        try:
            self._socket.send(self._encoder.result(job_id, done.outputs, done.timings))
        except ValueError as error:  # larger than a frame may be
            refused = ExecutionError(f"the outputs do not fit in a frame: {error}; give large data as tensors")
            self._runner.forget(done.handles)
            self._socket.send(self._encoder.failure(job_id, refused, done.timings))

    def _take_in(self, running: int = 0) -> None:
        """Look at what has arrived. What ends or frees something is acted upon; the rest waits its turn."""
        for body in self._socket.poll():
            message = protocol.read(body)
            if isinstance(message, pb.JobCancel) and message.job_id == running:
                self._cancelled.add(running)
            elif isinstance(message, pb.JobCancel | protocol.Release):
                self._handle(message)
            else:
                self._waiting.append(message)

    def look_for_cancel(self, job_id: int) -> bool:
        """Take in what has arrived while ``job_id`` runs; true once its cancellation has."""
        try:
            self._take_in(job_id)
        except ProtocolError as error:
            self._fault = error  # not this job's error: it is stopped, and `serve` deals with it
        return job_id in self._cancelled or self._fault is not None

    def _send_fault(self, error: JobError) -> None:
        try:
            self.send(fault=pb.Fault(code=error.code, reason=error.message))
        except (OSError, ValueError):
            pass  # it is gone, or not reading: the connection closes all the same
