"""Which job goes to which worker. Pure bookkeeping: no I/O, no threads, no clock.

A job whose objects are in one worker waits for that worker; any other goes to the first that is
idle. Both wait in the order they came. Choosing costs the same however many wait.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING

from vortex_worker.supervisor.objects import ObjectRef

if TYPE_CHECKING:
    from vortex_worker.supervisor.link import WorkerLink
    from vortex_worker.supervisor.task import Task


class Scheduler:
    """The queue of one fabric."""

    def __init__(self) -> None:
        self._anywhere: deque[Task] = deque()
        self._at_home: dict[WorkerLink, deque[Task]] = {}
        self._waiting: dict[Task, None] = {}  # all of both, in order

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, task: Task, *, first: bool = False) -> None:
        """Queue ``task`` where it must run; ``first``: before all others, as a retried one is."""
        home = task.pinned or home_of(task.work.refs)
        queue = self._anywhere if home is None else self._at_home.setdefault(home, deque())
        (queue.appendleft if first else queue.append)(task)
        self._waiting[task] = None

    def remove(self, task: Task) -> bool:
        """Take it out, if it still waits."""
        # Left in its deque, which costs a search to clean: `take` passes over what no longer waits.
        return self._waiting.pop(task, task) is None

    def take(self, worker: WorkerLink) -> Task | None:
        """The next task for a worker that is idle."""
        own = self._at_home.get(worker)
        for queue in (own, self._anywhere):
            while queue:
                task = queue.popleft()
                if self._waiting.pop(task, task) is None:
                    return task
        return None

    def evict(self, worker: WorkerLink) -> list[Task]:
        """``worker`` is gone: the tasks that waited for it, in order, to be placed anew."""
        return [t for t in self._at_home.pop(worker, ()) if self._waiting.pop(t, t) is None]

    def drain(self) -> list[Task]:
        """Take out everything."""
        tasks = list(self._waiting)
        self._waiting.clear()
        self._anywhere.clear()
        self._at_home.clear()
        return tasks


def home_of(refs: Iterable[ObjectRef]) -> WorkerLink | None:
    """The worker that has most of these objects; None if they are in none."""
    homes = [ref.home for ref in refs if ref.home is not None]
    return max(homes, key=homes.count) if homes else None


def missing(refs: Iterable[ObjectRef], worker: WorkerLink) -> list[ObjectRef]:
    """Those that are not in ``worker``, each once."""
    return list({id(ref): ref for ref in refs if ref.home is not worker}.values())
