"""The time that a job has, or a whole workflow: each of its jobs gets what is left of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vortex_worker.errors import DeadlineExceeded, QueueFull, shown_id
from vortex_worker.supervisor.job import Job, JobState, monotonic_deadline

if TYPE_CHECKING:
    from vortex_worker.supervisor.task import Task

_MORE = "deadline= (--timeout) gives it more"


class Deadline:
    """A moment ``seconds`` from now; None: never."""

    def __init__(self, seconds: float | None) -> None:
        """Raises ValueError if ``seconds`` is not above 0."""
        self._seconds = seconds
        self._at = monotonic_deadline(seconds)

    def left(self, doing: str = "") -> float | None:
        """Seconds from now, above 0; None for no deadline.

        Args:
            doing: what is being done, in words, for the error.

        Raises:
            DeadlineExceeded: none are left.
        """
        if self._seconds is None:
            return None
        left = (self._at - time.monotonic_ns()) / 1e9
        if left <= 0:
            raise self.exceeded(doing)
        return left

    def submitted(self, submit: Callable[..., Job], *args: Any, doing: str = "", **options: Any) -> Job:
        """The job that ``submit`` makes, which has the time that is left, waiting for a place in the queue included.

        Args:
            doing: what is being done, in words, for the error.

        Raises:
            DeadlineExceeded: none is left.
        """
        left = self.left(doing)
        try:
            return submit(*args, **options, deadline=left, timeout=left)
        except QueueFull:
            full = "the queue was full of other jobs"
            raise self.exceeded(f"{doing}, and {full}" if doing else full) from None

    def exceeded(self, doing: str = "") -> DeadlineExceeded:
        """What a workflow fails with that is not done by then; ``doing``: what it did, in words."""
        at = f": {doing}" if doing else ""
        return DeadlineExceeded(f"the workflow was not done within its {self._seconds:g} s{at}; {_MORE}")

    def tell(self, error: DeadlineExceeded, node: str, class_type: str) -> None:
        """Say of a job's error what the workflow's deadline was: the job's own was only what was left of it."""
        passed = self._seconds is not None and time.monotonic_ns() >= self._at  # a node may raise it when it likes
        if passed and "doing" in error.details:
            error.message = self.exceeded(f"node {shown_id(node)} ({class_type}) {error.details['doing']}").message


def exceeded(task: Task) -> DeadlineExceeded:
    """What a job fails with whose time is up; ``details["doing"]`` is what it did then, in words."""
    job, told = task.job, task.job.progress
    if job.state is not JobState.RUNNING:
        doing = "was waiting for a worker" + (f", after {job.attempts} lost under it" if job.attempts else "")
    else:
        doing = f"had been running for {(time.monotonic_ns() - task.begun) / 1e9:.3g} s"
        steps = (
            f", and its last report was step {told.step} of {told.total}" if told.total else ", and reported nothing"
        )
        doing += steps + (f" ({told.message:.100})" if told.message else "")
        if job.attempts > 1:
            doing += f", in attempt {job.attempts}"
    text = f"{job.op_type} (job {job.id}) was not done within its {task.seconds:g} s: it {doing}; {_MORE}"
    return DeadlineExceeded(text, {"doing": doing})
