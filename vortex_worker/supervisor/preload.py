"""Objects that each worker makes before it counts as ready: models that are wanted everywhere.

A preload is a job like any other, run in each worker while it still stands aside. Whoever asks for the same
job later gets what is there; a job with such objects runs in any worker, and needs nothing made again when
one dies. All state is under the crew's lock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vortex_worker.errors import ConfigError, LaunchError
from vortex_worker.ipc import protocol
from vortex_worker.supervisor.job import Job
from vortex_worker.supervisor.task import Task, Work

if TYPE_CHECKING:
    from vortex_worker.supervisor.crew import Crew
    from vortex_worker.supervisor.link import WorkerLink


class Preloads:
    """What the workers of one crew make in advance."""

    def __init__(self, crew: Crew, works: list[Work]) -> None:
        self._crew = crew
        self._works = works
        self._proven = False  # that they can all be made

    def find(self, work: Work) -> Work:
        """The preload that does the same as ``work``; ``work`` itself if there is none."""
        if work.tensors or work.refs:
            return work
        for known in self._works:
            if known.op_type == work.op_type and known.inputs == work.inputs and known.params == work.params:
                return known
        return work

    def begin(self, link: WorkerLink) -> bool:
        """Locked. Have a worker make them. True: there is nothing to make."""
        for work in self._works:
            job = Job(self._crew.jobs.next_id(), work.op_type, self._crew.jobs.cancel)
            self._crew.jobs.pin(Task(job, work, pinned=link))
            job.add_done_callback(lambda job, work=work: self._made(link, work, job))  # type: ignore[misc]
        return not self._works

    def _made(self, link: WorkerLink, work: Work, job: Job) -> None:
        error = job.exception()
        if error is None:
            with self._crew.lock:
                assert job._outputs is not None
                link.preloaded[work] = job._outputs
                if len(link.preloaded) == len(self._works):
                    self._proven = True
                    self._crew.call(self._crew.prepared, link)
        elif not link.lost and not self._crew.over:  # else the worker died of it, which is told elsewhere
            why = f"preload {work.op_type} failed: {error}"
            if self._proven:
                self._crew.call(self._crew.endings.give_up, link, why)
            else:
                self._crew.call(self._crew.broken, LaunchError(why))


def works(value: Iterable[tuple[str, Mapping[str, Any]]]) -> list[Work]:
    """``[(op_type, params), …]``, as a caller gives it.

    Raises:
        ConfigError: it is something else, or has tensors or objects in it.
    """
    found = []
    try:
        for pair in value:
            if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
                raise TypeError(f"{pair!r:.80}")
            op_type, params = pair
            if not isinstance(op_type, str) or not isinstance(params, Mapping):
                raise TypeError(f"({op_type!r:.80}, {params!r:.80})")
            found.append(Work(op_type, {}, protocol.stage(params, _refuse), everywhere=True))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"preload takes pairs of an op type and its params as plain data, not {error}") from None
    return found


def _refuse(value: Any) -> Any:
    raise TypeError(f"a {type(value).__name__}")
