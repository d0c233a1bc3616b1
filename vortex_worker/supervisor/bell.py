"""A condition variable that costs next to nothing to notify while nobody waits: a job's way passes four of them."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Bell:
    """As ``threading.Condition``, of which it has what is used here. All under the lock it is made with."""

    def __init__(self, lock: threading.RLock) -> None:
        self._condition = threading.Condition(lock)
        #: How many wait. Who rings often asks first.
        self.waiting = 0

    def wait_for(self, predicate: Callable[[], bool], timeout: float | None = None) -> bool:
        """Wait until ``predicate()`` holds, ``timeout`` seconds at most. Returns whether it holds."""
        if timeout is not None:
            timeout = min(timeout, threading.TIMEOUT_MAX)
        self.waiting += 1
        try:
            return self._condition.wait_for(predicate, timeout)
        finally:
            self.waiting -= 1

    def ring(self, most: int | None = None) -> None:
        """Wake who waits; ``most``: so many of them."""
        if self.waiting:
            self._condition.notify(self.waiting if most is None else most)
