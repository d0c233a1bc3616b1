"""References to objects that live in workers, and how to make them again."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vortex_worker.supervisor.link import WorkerLink
    from vortex_worker.supervisor.task import Work


class ObjectRef:
    """A resident object: a model, a text encoder. Give it to another job as an input.

    It stays in the worker that made it; the fabric sends jobs there, and makes it again from the
    job that made it (``lineage``) when that worker is gone. Dropping the last reference lets the
    worker drop the object.
    """

    __slots__ = ("__weakref__", "_guest", "_home", "_id", "arena", "lineage", "path", "type")

    def __init__(self, home: WorkerLink, object_id: int, type: str) -> None:
        #: Its port type, such as "MODEL".
        self.type = type
        #: The work that made it, and where in its outputs it is.
        self.lineage: Work | None = None
        self.path: tuple[str | int, ...] = ()
        #: Its fabric's: to another it means nothing.
        self.arena = home.arena
        self._home: WorkerLink | None = home
        self._id = object_id
        self._guest = False  # it is its worker's own, made in advance: not ours to drop

    def __repr__(self) -> str:
        where = self._home.worker_id if self._home is not None else "lost"
        return f"<{self.type} object {self._id} in {where}>"

    def __del__(self) -> None:
        self._drop()

    def _drop(self) -> None:
        if self._home is not None and not self._guest:
            self._home.dropped_objects.append(self._id)

    def guest(self) -> ObjectRef:
        """Another reference to it, whose end drops nothing: of an object that its worker keeps."""
        assert self._home is not None
        ref = ObjectRef(self._home, self._id, self.type)
        ref.lineage, ref.path, ref._guest = self.lineage, self.path, True
        return ref

    @property
    def home(self) -> WorkerLink | None:
        """The worker that has it; None when that worker is gone."""
        return self._home if self._home is not None and not self._home.lost else None

    @property
    def everywhere(self) -> bool:
        """Whether each worker makes it in advance."""
        return self.lineage is not None and self.lineage.everywhere

    def id_in(self, worker: WorkerLink) -> int | None:
        """Its number in ``worker``; None if it isn't there."""
        if self.home is worker:
            return self._id
        if self.lineage is None or not self.lineage.everywhere or self.lineage not in worker.preloaded:
            return None
        twin = worker.preloaded[self.lineage].at(self.path)
        return twin._id if isinstance(twin, ObjectRef) and twin.type == self.type else None

    def lose(self) -> None:
        """Its worker says that it no longer has it: it must be made again."""
        self._home = None

    def move(self, other: ObjectRef) -> None:
        """Take over what ``other`` refers to: the same object, made again elsewhere."""
        self._drop()
        self._home, self._id, self._guest = other._home, other._id, other._guest
        other._home = None
