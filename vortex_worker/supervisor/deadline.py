"""The time that a whole workflow has: each of its jobs gets what is left of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from vortex_worker.errors import DeadlineExceeded, QueueFull
from vortex_worker.supervisor.job import Job, monotonic_deadline


class Deadline:
    """A moment ``seconds`` from now; None: never."""

    def __init__(self, seconds: float | None) -> None:
        """Raises ValueError if ``seconds`` is not above 0."""
        self._seconds = seconds
        self._at = monotonic_deadline(seconds)

    def left(self) -> float | None:
        """Seconds from now, above 0; None for no deadline.

        Raises:
            DeadlineExceeded: none are left.
        """
        if self._seconds is None:
            return None
        left = (self._at - time.monotonic_ns()) / 1e9
        if left <= 0:
            raise self.exceeded()
        return left

    def submitted(self, submit: Callable[..., Job], *args: Any, **options: Any) -> Job:
        """The job that ``submit`` makes, which has the time that is left, waiting for a place in the queue included.

        Raises:
            DeadlineExceeded: none is left.
        """
        left = self.left()
        try:
            return submit(*args, **options, deadline=left, timeout=left)
        except QueueFull:
            raise self.exceeded() from None

    def exceeded(self) -> DeadlineExceeded:
        """What a workflow fails with that is not done by then."""
        return DeadlineExceeded(f"the workflow was not done within its {self._seconds:g} s")
