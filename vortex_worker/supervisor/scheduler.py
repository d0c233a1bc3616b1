"""Which job goes to which worker. Pure bookkeeping: no I/O, no threads, no clock.

A job whose objects are in one worker waits for that worker; any other goes to the first that is
idle. Both wait by priority, and then in the order they came. Where none is idle, or those at work are
enough, workers that have room for a job beside the one they run get those that wait, in turn. Choosing
costs the logarithm of how many wait, and of how many workers are idle: no list of either is gone through.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from vortex_worker.supervisor.objects import ObjectRef

if TYPE_CHECKING:
    from vortex_worker.supervisor.link import WorkerLink
    from vortex_worker.supervisor.task import Task

#: Priority (negative), order, task: no two have one order, so tasks are never compared.
_Entry = tuple[int, int, "Task"]
_Room = Callable[["WorkerLink", "Task"], bool]
_Enough = Callable[[int, "Task"], bool]


class Scheduler:
    """The queue of one fabric: by priority, the highest first, and then in order."""

    def __init__(self, room: _Room = lambda worker, task: False, enough: _Enough = lambda busy, task: False) -> None:
        """``room(worker, task)``: whether a worker that runs a job may be given that task as well.

        ``enough(busy, task)``: whether so many that may have room are to be asked before one that is idle.
        """
        self._room = room
        self._enough = enough
        self._anywhere: list[_Entry] = []
        self._at_home: dict[WorkerLink, list[_Entry]] = {}
        #: All of both, with the number of the entry that counts. To be looked at only.
        self.waiting: dict[Task, int] = {}
        self._numbers = itertools.count(1)
        self._look: deque[WorkerLink] = deque()  # those for which something has changed
        self._idle: list[tuple[int, WorkerLink]] = []  # by index, which no two share; some are busy again
        self._resting: set[WorkerLink] = set()  # who is in it
        self._busy: dict[WorkerLink, None] = {}  # those that may have room, in turn

    def __len__(self) -> int:
        return len(self.waiting)

    def add(self, task: Task, *, first: bool = False) -> None:
        """Queue ``task`` where it must run; ``first``: before its like, as a retried one is."""
        home = task.pinned or (home_of(task.work.refs) if task.work.refs else None)
        queue = self._anywhere if home is None else self._at_home.setdefault(home, [])
        number = next(self._numbers)
        number = -number if first else number
        heapq.heappush(queue, (-task.priority, number, task))
        self.waiting[task] = number
        if home is not None:
            self._look.append(home)

    def remove(self, task: Task) -> bool:
        """Take it out, if it still waits."""
        # Left in its queue, which costs a search to clean: `take` passes over what no longer waits.
        return self.waiting.pop(task, None) is not None

    def free(self, worker: WorkerLink) -> None:
        """``worker`` may have nothing to do: ``pair`` looks at it."""
        if self.waiting or worker not in self._resting:  # else there is nothing for it, and it is found when there is
            self._look.append(worker)

    def pair(self) -> tuple[WorkerLink, Task] | None:
        """A worker that is free, or has room, and the next task for it; None: there are no two.

        Whoever gets them makes the worker busy, or is given it again.
        """
        while self._look:
            worker = self._look[0]
            if worker.free and (task := self.take(worker, anywhere=worker.active)):
                return worker, task
            self._look.popleft()
            if not worker.idle:
                self._busy[worker] = None
                continue
            self._busy.pop(worker, None)
            if worker not in self._resting:
                self._resting.add(worker)
                heapq.heappush(self._idle, (worker.index, worker))
        while self._idle and self._anywhere and self._tidy(self._anywhere):
            while self._busy and self._enough(len(self._busy), self._anywhere[0][2]):
                if pair := self._share():
                    return pair
            worker = self._idle[0][1]
            if worker.idle and (task := self.take(worker)):
                return worker, task
            heapq.heappop(self._idle)
            self._resting.discard(worker)
            self._busy[worker] = None
        while self._busy and self.waiting:
            if pair := self._share():
                return pair
        return None

    def _share(self) -> tuple[WorkerLink, Task] | None:
        """The next of those that may have room, and a task for it; None: it has none, and is asked no more."""
        worker = next(iter(self._busy))
        del self._busy[worker]
        if task := self.take(worker, room=self._room):
            self._busy[worker] = None  # behind the others
            return worker, task
        return None

    def take(self, worker: WorkerLink, *, anywhere: bool = True, room: _Room | None = None) -> Task | None:
        """The next task for a worker; ``anywhere``: also of those that any could run; ``room``: where it has that."""
        queue = self._at_home.get(worker)
        if queue and not self._tidy(queue):
            queue = None
        # Of like priority, what can run nowhere else goes first.
        if anywhere and self._tidy(self._anywhere) and (not queue or self._anywhere[0][0] < queue[0][0]):
            queue = self._anywhere
        if not queue or (room is not None and not room(worker, queue[0][2])):
            return None
        _, _, task = heapq.heappop(queue)
        del self.waiting[task]
        return task

    def _tidy(self, queue: list[_Entry] | None) -> bool:
        """Whether somebody waits in it, who is then at its head."""
        while queue:
            _, number, task = queue[0]
            if self.waiting.get(task) == number:
                return True
            heapq.heappop(queue)
        return False

    def evict(self, worker: WorkerLink) -> list[Task]:
        """``worker`` is gone: the tasks that waited for it, in order, to be placed anew."""
        entries = sorted(self._at_home.pop(worker, []))
        evicted = [task for _, number, task in entries if self.waiting.get(task) == number]
        for task in evicted:
            del self.waiting[task]
        self._busy.pop(worker, None)
        if worker in self._resting:
            self._resting.discard(worker)
            self._idle = [entry for entry in self._idle if entry[1] is not worker]
            heapq.heapify(self._idle)
        return evicted

    def restore(self) -> None:
        """Who changed it was interrupted: drop what is no longer in a queue, and forget who was idle.

        Each worker is to be given to ``free`` then.
        """
        queued = {number for queue in (self._anywhere, *self._at_home.values()) for _, number, _ in queue}
        for task in [task for task, number in self.waiting.items() if number not in queued]:
            del self.waiting[task]
        self._idle.clear()
        self._resting.clear()

    def drain(self) -> list[Task]:
        """Take out everything."""
        tasks = list(self.waiting)
        self.waiting.clear()
        self._anywhere.clear()
        self._at_home.clear()
        return tasks


def home_of(refs: Sequence[ObjectRef]) -> WorkerLink | None:
    """The worker that has most of these objects; None if they are in none, or are made in each in advance."""
    if not refs:
        return None
    homes = Counter(ref.home for ref in refs if ref.home is not None and not ref.everywhere)
    return max(homes, key=homes.__getitem__) if homes else None


def missing(refs: Sequence[ObjectRef], worker: WorkerLink) -> list[ObjectRef]:
    """Those that are not in ``worker``, each once."""
    if not refs:
        return []
    return list({id(ref): ref for ref in refs if ref.id_in(worker) is None}.values())
