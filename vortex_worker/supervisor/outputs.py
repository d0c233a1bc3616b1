"""A job's outputs: received, checked and owned at once; made into tensors when first asked for.

The fabric's thread takes a result in without torch; the caller's thread that reads it imports it.
"""

from __future__ import annotations

import itertools
from functools import cache
from typing import TYPE_CHECKING, Any, NoReturn

from vortex_worker._core.handle import TensorHandle
from vortex_worker.errors import InvalidHandle, ProtocolError
from vortex_worker.ipc import protocol
from vortex_worker.supervisor.objects import ObjectRef

if TYPE_CHECKING:
    from types import ModuleType

    from vortex_worker._core.arena import Arena
    from vortex_worker.supervisor.link import WorkerLink
    from vortex_worker.supervisor.task import Work

_ENCODING_RAW = 0
#: Tensors and objects of one result. Each is kept, checked and released by itself: more would be a job of its own.
_MAX_HANDLES = 1 << 14
#: Types of data that are not objects: a worker can't pass one off as a reference.
_MAX_TYPE_NAME = 128


@cache
def _bridge() -> ModuleType:
    from vortex_worker.bridge import tensor  # and torch, with the first tensor

    return tensor


class Stored:
    """A tensor not looked at yet: its checked handle, and what keeps its memory."""

    __slots__ = ("_arena", "handle", "owner")

    def __init__(self, arena: Arena, handle: TensorHandle, owner: Any) -> None:
        self._arena = arena
        self.handle = handle
        self.owner = owner

    @classmethod
    def receive(cls, handle: TensorHandle, work: Work, link: WorkerLink, arena: Arena) -> Stored:
        """Take over a tensor that a worker handed out: a view of an input, or something in its lease.

        Raises:
            InvalidHandle: it is malformed, in neither, or over a live one.
        """
        owner = work.owner_of_view(handle)
        if owner is None:
            return cls(arena, handle, link.lease.admit(handle))
        handle.check(arena.data_offset, arena.data_size)
        return cls(arena, handle, owner)

    def load(self) -> Any:
        """The tensor: a zero-copy view that keeps its memory."""
        if self.handle.encoding != _ENCODING_RAW:
            from vortex_worker.bridge.arrow import ArrowBridge

            return ArrowBridge().arrow_to_tensor(self._arena.buffer(self.handle.offset, self.handle.nbytes, self.owner))
        return _bridge().view(self._arena, self.handle, self.owner)


class Outputs:
    """What a worker returned for one job."""

    def __init__(self, values: dict[str, Any], objects: list[ObjectRef]) -> None:
        self._values = values
        self._loaded: dict[str, Any] | None = None
        self.objects = objects

    @classmethod
    def receive(cls, result: protocol.JobResult, work: Work, link: WorkerLink, arena: Arena) -> Outputs:
        """Check everything in ``result`` and take ownership of what it hands over.

        Raises:
            InvalidHandle: a tensor that is malformed, not in the worker's lease, or over a live one.
            ProtocolError: anything else that makes no sense.
        """
        objects: list[ObjectRef] = []
        count = itertools.count(1)

        def load(handle: TensorHandle) -> Stored:
            if next(count) > _MAX_HANDLES:
                too_many()
            return Stored.receive(handle, work, link, arena)

        def load_object(object_id: int, type: str) -> ObjectRef:
            if next(count) > _MAX_HANDLES:
                too_many()
            if not type.isprintable() or len(type) > _MAX_TYPE_NAME:
                raise ProtocolError("an object's type is not a printable name")
            ref = ObjectRef(link, object_id, type)
            objects.append(ref)
            return ref

        def too_many() -> NoReturn:
            raise ProtocolError(f"a result has more than {_MAX_HANDLES} tensors and objects, which is the most")

        if result.malformed is not None:
            raise result.malformed
        values = protocol.resolve(result.outputs, load, load_object)
        outputs = cls(values, objects)
        if objects:
            for port, value in values.items():
                _note_lineage(value, (port,), work)
        return outputs

    def share(self) -> Outputs:
        """The same once more: its tensors are the same memory, the end of its objects drops nothing."""
        objects: list[ObjectRef] = []
        return Outputs(_guests(self._values, objects), objects)

    def load(self) -> dict[str, Any]:
        """The outputs by port, tensors as zero-copy views."""
        if self._loaded is None:
            self._loaded = {
                port: value.load() if type(value) is Stored else _load(value) for port, value in self._values.items()
            }
        return dict(self._loaded)

    def at(self, path: tuple[str | int, ...]) -> Any:
        """The raw value at ``path``, as lineage keeps it.

        Raises:
            InvalidHandle: there is none: the job gave other outputs this time.
        """
        value: Any = self._values
        for key in path:
            try:
                value = value[key]
            except (KeyError, IndexError, TypeError):
                raise InvalidHandle(f"the job that made the object gave nothing at {path} this time") from None
        return value


def _load(value: Any) -> Any:
    if isinstance(value, Stored):
        return value.load()
    if isinstance(value, list):
        return [_load(item) for item in value]
    if isinstance(value, dict):
        return {key: _load(item) for key, item in value.items()}
    return value


def _guests(value: Any, objects: list[ObjectRef]) -> Any:
    if isinstance(value, ObjectRef):
        objects.append(value.guest())
        return objects[-1]
    if isinstance(value, list):
        return [_guests(item, objects) for item in value]
    if isinstance(value, dict):
        return {key: _guests(item, objects) for key, item in value.items()}
    return value


def _note_lineage(value: Any, path: tuple[str | int, ...], work: Work) -> None:
    if isinstance(value, ObjectRef):
        value.lineage, value.path = work, path
    elif isinstance(value, dict):
        for key, item in value.items():
            _note_lineage(item, (*path, key), work)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _note_lineage(item, (*path, index), work)
