"""A job as its caller sees it: progress, cancellation, result."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple

from vortex_worker.errors import VortexError

if TYPE_CHECKING:
    from vortex_worker.supervisor.link import WorkerLink
    from vortex_worker.supervisor.outputs import Outputs, Stored

log = logging.getLogger("vortex_worker")
_here = threading.local()  # calling: whether this thread runs a job's callback
_FOREVER = threading.TIMEOUT_MAX  # s


class JobState(Enum):
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


#: States that a job does not leave. The hot path asks for them without a call.
ENDS = (JobState.DONE, JobState.FAILED)


class Progress(NamedTuple):
    """How far a job is: ``step`` of ``total``, 0 of 0 before its first report."""

    step: int = 0
    total: int = 0
    message: str = ""


class Timings(NamedTuple):
    """Where a job's time went, ns. ``decode`` to ``save`` as the worker tells it."""

    decode: int = 0
    map: int = 0
    execute: int = 0
    save: int = 0


_NO_PROGRESS, _NO_TIMINGS = Progress(), Timings()  # made once: each job begins with them


class Job:
    """One submitted job. Made by ``Fabric.submit``; safe to use from any thread."""

    def __init__(
        self,
        job_id: int,
        op_type: str,
        cancel: Callable[[Job], None],
        attend: Callable[[Job, float | None], None] = lambda job, timeout: None,
    ) -> None:
        self.id = job_id
        self.op_type = op_type
        self.state = JobState.QUEUED
        #: Last report of the node.
        self.progress = _NO_PROGRESS
        #: Where the time went, once it is done.
        self.timings = _NO_TIMINGS
        #: Id of the worker that ran it last, "" before.
        self.worker = ""
        #: How many times it was started.
        self.attempts = 0
        self._cancel = cancel
        self._attend = attend
        self._runner: WorkerLink | None = None  # that was given it last
        self._ended = threading.Lock()
        self._ended.acquire()
        self._callbacks: list[Callable[[Job], None]] = []
        self._watchers: list[Callable[[Job], None]] = []
        self._guard = threading.Lock()
        self._outputs: Outputs | None = None
        self._preview: Stored | None = None
        self._error: VortexError | None = None

    def __repr__(self) -> str:
        return f"<Job {self.id} {self.op_type} {self.state.value}>"

    def done(self) -> bool:
        """Whether it has ended, one way or the other."""
        return self.state in ENDS

    def cancel(self) -> None:
        """Ask for its end. It fails with ``Cancelled`` (WK-007), unless it ends by itself first.

        A queued job ends at once; a running one at its next progress report, or by the death of
        its worker when it gives none within the fabric's grace period.
        """
        self._cancel(self)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for its end, ``timeout`` seconds at most. Returns whether it has ended.

        Raises:
            RuntimeError: in a callback of a job, and it has not ended.
            ValueError: a time-out that is no time.
        """
        if self.state in ENDS:
            return True
        if getattr(_here, "calling", False):
            refuse_in_callback("wait for a job")
        if timeout is not None:
            if timeout != timeout:
                raise ValueError("timeout is nan: it takes seconds")
            timeout = min(timeout, _FOREVER)
        if self._runner is not None and (timeout is None or timeout > 0):
            begun = time.monotonic()
            self._attend(self, timeout)
            if timeout is not None:
                timeout -= time.monotonic() - begun
        try:
            return self._ended.acquire(timeout=-1 if timeout is None else max(0.0, timeout))
        finally:
            if self.state in ENDS:  # open from now on; no call before that, where Ctrl-C could come between
                try:
                    self._ended.release()
                except RuntimeError:
                    pass  # it is open already

    def result(self, timeout: float | None = None) -> dict[str, Any]:
        """Its outputs by port; tensors are zero-copy views of shared memory.

        Raises:
            JobError: it failed; see ``vortex_worker.errors`` for each code.
            FabricClosed: the fabric was closed before it ran.
            TimeoutError: it has not ended within ``timeout`` seconds. It goes on.
        """
        if not self.wait(timeout):
            raise TimeoutError(f"{self!r} has not ended within {timeout} s")
        if self._error is not None:
            raise self._error
        assert self._outputs is not None
        return self._outputs.load()

    def exception(self, timeout: float | None = None) -> VortexError | None:
        """Its error, or None if it succeeded."""
        if not self.wait(timeout):
            raise TimeoutError(f"{self!r} has not ended within {timeout} s")
        return self._error

    @property
    def preview(self) -> Any:
        """The last tensor that the node showed of what it is making, a zero-copy view; None: none, or it has ended."""
        preview = self._preview
        return None if preview is None else preview.load()

    def add_done_callback(self, callback: Callable[[Job], None]) -> None:
        """Call ``callback(job)`` at its end, at once if it has ended. From the thread that learns of it: be brief."""
        with self._guard:
            if not self.done():
                self._callbacks.append(callback)
                return
        self._call(callback)

    def on_progress(self, callback: Callable[[Job], None]) -> None:
        """Call ``callback(job)`` at each progress report. From the thread that learns of it: be brief."""
        self._watchers.append(callback)

    # ---- the fabric's side

    def _report(self, progress: Progress, preview: Stored | None) -> None:
        with self._guard:
            if self.done():  # meanwhile, by another thread: a preview would keep its memory as long as the job is kept
                return
            self.progress = progress
            if preview is not None:
                self._preview = preview
        for watcher in self._watchers:
            self._call(watcher)

    def _end(self, outputs: Outputs | None, error: VortexError | None) -> bool:
        """Settle it, once. False if it had ended already."""
        with self._guard:
            if self.state in ENDS:
                return False
            if error is not None:
                error.__traceback__ = None  # of our own frames, which would keep what a worker sent as long as it
            self._outputs, self._error, self._preview = outputs, error, None
            self.state = JobState.FAILED if error is not None else JobState.DONE
            callbacks, self._callbacks = self._callbacks, []
            try:
                self._ended.release()  # with nothing before it where Ctrl-C could come between
            except RuntimeError:
                pass  # who waited until now found it ended, and did so
        for callback in callbacks:
            self._call(callback)
        return True

    def _abandon(self, error: VortexError) -> None:
        """``_end``, in a process that was just forked: whoever held our lock is not here."""
        self._guard = threading.Lock()
        self._callbacks = []
        self._end(None, error)

    def _call(self, callback: Callable[[Job], None]) -> None:
        """The caller's code, in whatever thread we are in: its bug is told, and is nobody else's."""
        outer, _here.calling = getattr(_here, "calling", False), True
        try:
            callback(self)
        except KeyboardInterrupt:
            if threading.current_thread() is threading.main_thread():
                raise  # Ctrl-C, which has nothing to do with it
            log.exception("a callback of %r raised", self)
        except BaseException:  # also SystemExit: it would end the thread that every job depends on
            log.exception("a callback of %r raised", self)
        finally:
            _here.calling = outer


def in_callback() -> bool:
    """Whether this thread runs a job's callback. Jobs may depend on its end."""
    return getattr(_here, "calling", False)


def refuse_in_callback(what: str) -> None:
    """Raises RuntimeError in a job's callback: ``what`` could wait for the callback itself."""
    if in_callback():
        raise RuntimeError(f"a job's callback can't {what}: it might wait for itself. Let another thread do it")


def monotonic_deadline(seconds: float | None) -> int:
    """CLOCK_MONOTONIC ns of a deadline ``seconds`` from now; 0 for none."""
    if seconds is None:
        return 0
    if not isinstance(seconds, int | float):
        raise TypeError(f"deadline is {seconds!r:.80}: it takes seconds from now")
    if not 0 < seconds < 1e9:
        raise ValueError(f"deadline is {seconds!r}: it takes seconds from now, above 0")
    return time.monotonic_ns() + int(seconds * 1e9)
