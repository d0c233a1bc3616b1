"""What a worker's death means for the job it had: which error, and whether to try again."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

from vortex_worker.errors import JobError, LaunchError, SandboxViolation, SettingRefused, VortexError, WorkerLost
from vortex_worker.supervisor.process import describe_exit

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vortex_worker.supervisor.link import WorkerLink
    from vortex_worker.supervisor.task import Task

_CALLERS = ("runner.py", "folder.py")  # they call into nodes: from there on the stack is ours
_CUT = ": most likely a file that was mapped, a model's say, has become shorter, or could not be read"
_FAULTS = (-signal.SIGSEGV, -signal.SIGBUS)


def explain_death(task: Task, link: WorkerLink, status: int | None) -> tuple[VortexError, bool]:
    """The error that a death is for its job, and whether another run could end otherwise.

    ``status`` is the kernel's; the fault record in the slot is the worker's own word, and decides
    nothing but a sentence and that its own job isn't tried again.
    """
    if task.ending is not None:
        return task.ending, False
    what = f"{task.work.op_type} (job {task.job.id}): worker {link.worker_id}, pid {link.process.pid}"
    details = {"worker": link.worker_id, "pid": str(link.process.pid), "exit": describe_exit(status)}
    if link.fault:
        details["fault"] = link.fault
        return WorkerLost(f"{what} was given up: {link.fault}", details), True
    if link.denial is not None:
        details |= link.denial.details()
        where = traceback_of(link.log_tail)
        if where:
            details["traceback"] = where
        return (
            SandboxViolation(
                f"{what} was killed by its sandbox: "
                + (f"it tried to {link.denial.deed}, and " if link.denial.deed else "")
                + f"policy {link.report.policy!r} denies {link.denial}"
                + (f"; called from\n{where}" if where else ""),
                details,
                retryable=False,
            ),
            False,
        )
    if status == -signal.SIGSYS:
        # Not told by a listener: there is none, or it was one of the two calls that handed the listener over.
        which = "sendmsg or seccomp" if link.listener else "a system call"
        return (
            SandboxViolation(
                f"{what} was killed by its sandbox: policy {link.report.policy!r} denies {which}",
                details,
                retryable=False,
            ),
            False,
        )
    if status in _FAULTS:
        record = link.slot.snapshot()
        port = task.work.input_covering(record.fault_address - 1) if record.fault_address else ""
        if port:
            details["port"] = port
            error: JobError = WorkerLost(
                f"{what} died because the node writes to its input {port!r} in place; inputs are "
                "read-only shared memory: copy it first, or set mutates_inputs = True on the node",
                details,
                retryable=False,
            )
            return error, False
    said = _CUT if status == -signal.SIGBUS else ""
    return WorkerLost(f"{what} was lost: {describe_exit(status)}{said}", details), True


def explain_start(link: WorkerLink, status: int | None) -> LaunchError:
    """Why a worker ended before it was ready."""
    why = link.fault or (f"was denied {link.denial}" if link.denial else describe_exit(status))
    why = f"worker {link.worker_id} {why}"
    if link.refusal and not link.fault and not link.denial:
        return SettingRefused(f"{why}: {link.refusal}")
    said = "\n".join(link.log_tail)
    return LaunchError(why + (f"; it wrote:\n{said}" if said else ""))


def traceback_of(lines: Iterable[str]) -> str:
    """The node's part of the stack that a worker's fault handler wrote last, innermost call first; or "".

    The worker's own word: it may be wrong, and is only for the reader.
    """
    found: list[str] = []
    ours = False
    for line in lines:
        if line.startswith(("Current thread 0x", "Stack (most recent call first)")):
            found, ours = [], False
        elif line.startswith('  File "'):
            ours = ours or any(f'{os.sep}executor{os.sep}{name}"' in line for name in _CALLERS)
            if not ours:
                found.append(line)
    return "\n".join(found)


def exhausted(error: VortexError, task: Task) -> VortexError:
    """The same error, saying how often it was tried."""
    if isinstance(error, WorkerLost) and task.job.attempts > 1:
        details = error.details | {"attempts": str(task.job.attempts)}
        return WorkerLost(f"{error.message}, on each of {task.job.attempts} attempts", details, error.retryable)
    return error


class Backoff:
    """How long to wait before the next start of something whose starts fail, and when to give up.

    A process that ends by itself three times in a row will do so again. One that was killed may have been
    killed from outside, by the system when memory is short or by somebody, who may stop: that takes ten
    times, and ten seconds, to be sure of.
    """

    _PAUSES = (0.02, 0.1, 0.5, 2.0, 5.0)  # s
    _PATIENCE = 10.0  # s

    def __init__(self) -> None:
        self.succeeded()

    def succeeded(self) -> None:
        self._failures = 0  # tenths: one that was killed counts three
        self._exits = 0
        self._since = 0.0

    def failed(self, status: int | None, *, passing: bool = False) -> None:
        """One more start failed, with this exit status; None: there was no process.

        ``passing``: for a reason that may pass, as one that was killed.
        """
        killed = passing or (status is not None and status < 0 and status != -signal.SIGSYS)
        self._since = self._since or time.monotonic()
        self._exits += not killed
        self._failures += 3 if killed else 10

    @property
    def hopeless(self) -> bool:
        patient = self._exits < 3 and time.monotonic() - self._since < self._PATIENCE
        return self._failures >= 30 and not patient

    @property
    def pause(self) -> float:
        """Seconds."""
        return self._PAUSES[min(self._failures // 10, len(self._PAUSES) - 1)]
