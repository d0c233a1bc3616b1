"""The worker's event loop: packets in, jobs run, packets out.

One thread. While a job runs the loop does not, so the job's own progress reports look at the
socket in between (``_cancelled``): a cancellation is seen there, anything else waits its turn.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Protocol

from vortex_worker._core.slots import BUSY, DRAINING, IDLE
from vortex_worker.errors import Cancelled, ExecutionError, JobError, ProtocolError
from vortex_worker.ipc import control_pb2 as pb
from vortex_worker.ipc import protocol

if TYPE_CHECKING:
    from vortex_worker._core.framing import FrameSocket
    from vortex_worker._core.slots import Slot
    from vortex_worker.logging import Logger

_PROGRESS_INTERVAL = 0.02  # s between two progress frames; the slot's counters are always current
_EXIT_OK = 0
_EXIT_FAULT = 3  # the supervisor's traffic could not be understood


class Runner(Protocol):
    """What the handler needs of the executing side. ``main.py`` joins the two."""

    def run(self, op_type: str, submit: pb.JobSubmit, control: JobControl) -> tuple[pb.JobResult, bool]:
        """Run one job. Returns its result, and whether the worker must retire after it."""

    def release(self, offsets: list[int], objects: list[int]) -> None:
        """Forget handles and objects that the supervisor no longer needs."""

    def forget(self, result: pb.JobResult) -> None:
        """Forget what ``result`` hands over: it could not be sent."""

    def preview(self, value: Any, into: pb.TensorHandle) -> bool:
        """Hand over a tensor while its job runs. False: there is no room for it."""


class JobControl:
    """What a running job may ask of the loop: to report progress, and whether it was cancelled."""

    def __init__(self, handler: Handler, job_id: int, deadline: int) -> None:
        self.job_id = job_id
        self.deadline = deadline
        self._handler = handler
        self._sent = 0.0

    def report(self, step: int, total: int, message: str, preview: Any = None) -> None:
        """Tell slot and supervisor how far the job is. Frames are sent at most 50 times a second."""
        self._handler.slot.progress(step, total)
        now = time.monotonic()
        if now - self._sent >= _PROGRESS_INTERVAL or step == total:
            self._sent = now
            self._handler.send_progress(
                pb.JobProgress(job_id=self.job_id, step=step, total=total, message=message), preview
            )

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
        self._encode = encoder.encode
        self._waiting: deque[pb.ControlPacket] = deque()
        self._cancelled: set[int] = set()
        self._retire = False
        self._fault: ProtocolError | None = None  # found while a job ran

    def send(self, **body: Any) -> None:
        self._socket.send(self._encode(**body))

    def send_progress(self, progress: pb.JobProgress, preview: Any) -> None:
        """Send a report, with the preview if there is one and room for it."""
        if preview is not None and not self._runner.preview(preview, progress.preview):
            progress.ClearField("preview")
        self.send(job_progress=progress)

    def serve(self, leisure: Iterable[Callable[[], object]] = ()) -> int:
        """Handle packets until the end; before the first, do what there is leisure for. Returns the exit status."""
        self.slot.set_status(IDLE)
        try:
            for work in leisure:
                self._waiting.extend(protocol.decode(body) for body in self._socket.poll())
                if self._waiting:
                    break
                work()
            while not self._retire:
                packet = self._next()
                if packet is None:
                    self._log.info("worker.hangup")
                    return _EXIT_OK
                if not self._handle(packet):
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

    def _next(self) -> pb.ControlPacket | None:
        if self._waiting:
            return self._waiting.popleft()
        body = self._socket.recv()
        return None if body is None else protocol.decode(body)

    def _handle(self, packet: pb.ControlPacket) -> bool:
        """Act on one packet. False: this was the last."""
        kind = packet.WhichOneof("body")
        if kind == "job_submit":
            self._run(packet.job_submit)
        elif kind == "release":
            self._runner.release(list(packet.release.offsets), list(packet.release.objects))
        elif kind == "job_cancel":
            # Of a job that waits behind others; one that has ended already is no error.
            if any(
                p.WhichOneof("body") == "job_submit" and p.job_submit.job_id == packet.job_cancel.job_id
                for p in self._waiting
            ):
                self._cancelled.add(packet.job_cancel.job_id)
        elif kind == "ping":
            self.send(pong=pb.Pong(nonce=packet.ping.nonce))
        elif kind == "shutdown":
            self._log.info("worker.shutdown", reason=packet.shutdown.reason)
            return False
        elif kind == "fault":
            self._log.error("supervisor.fault", code=packet.fault.code, reason=packet.fault.reason)
            return False
        else:
            raise ProtocolError(f"a worker that is ready takes no {kind}")
        return True

    def _run(self, submit: pb.JobSubmit) -> None:
        job_id = submit.job_id
        if job_id == 0:
            raise ProtocolError("a JobSubmit has job_id 0: job ids begin at 1")
        self.slot.begin(job_id)
        self.slot.set_status(BUSY)
        self._log.job_id = job_id
        self._log.debug("job.start", op_type=submit.op_type)
        if job_id in self._cancelled:
            self._cancelled.discard(job_id)
            result = pb.JobResult(job_id=job_id, error=protocol.pack_error(Cancelled("cancelled before it ran")))
        else:
            result, self._retire = self._runner.run(submit.op_type, submit, JobControl(self, job_id, submit.deadline))
        self._cancelled.discard(job_id)
        self.slot.end()
        self.slot.set_status(IDLE)
        self._send_result(result)
        if self._log.enabled("debug"):
            error = result.error.code if result.HasField("error") else None
            self._log.debug("job.done", op_type=submit.op_type, error=error, execute_ms=result.timings.execute / 1e6)
        self._log.job_id = 0

    def _send_result(self, result: pb.JobResult) -> None:
        try:
            self.send(job_result=result)
        except ValueError as error:  # larger than a frame may be
            refused = ExecutionError(f"the outputs do not fit in a frame: {error}; give large data as tensors")
            self._runner.forget(result)
            self.send(job_result=pb.JobResult(job_id=result.job_id, error=protocol.pack_error(refused)))

    def look_for_cancel(self, job_id: int) -> bool:
        """Take in what has arrived while ``job_id`` runs; true once its cancellation has."""
        try:
            for body in self._socket.poll():
                packet = protocol.decode(body)
                kind = packet.WhichOneof("body")
                if kind == "job_cancel" and packet.job_cancel.job_id == job_id:
                    self._cancelled.add(job_id)
                elif kind in ("job_cancel", "release"):
                    self._handle(packet)
                else:
                    self._waiting.append(packet)
        except ProtocolError as error:
            self._fault = error  # not this job's error: it is stopped, and `serve` deals with it
        return job_id in self._cancelled or self._fault is not None

    def _send_fault(self, error: JobError) -> None:
        try:
            self.send(fault=pb.Fault(code=error.code, reason=error.message))
        except (OSError, ValueError):
            pass  # it is gone, or not reading: the connection closes all the same
