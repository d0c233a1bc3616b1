"""Resident objects: what a job left in the worker for jobs to come."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

from vortex_worker.errors import ObjectLost
from vortex_worker.executor.validation import a


class ObjectTable:
    """Objects by number, the least recently used first."""

    def __init__(self) -> None:
        self._objects: OrderedDict[int, tuple[Any, str]] = OrderedDict()
        self._last = 0

    def __len__(self) -> int:
        return len(self._objects)

    def put(self, value: Any, type: str) -> int:
        """Keep an object. Each call gives a number of its own, also for the same object."""
        self._last += 1
        self._objects[self._last] = (value, type)
        return self._last

    def get(self, number: int, type: str) -> Any:
        """The object of that number, now the most recently used.

        Raises:
            ObjectLost: there is none (any more), or it is of another type.
        """
        held = self._objects.get(number)
        if held is None:
            raise ObjectLost(f"{type} object {number} is not in this worker (any more)")
        if held[1] != type:
            raise ObjectLost(f"object {number} is {a(held[1])}, not {a(type)}")
        self._objects.move_to_end(number)
        return held[0]

    def type_of(self, value: Any) -> str | None:
        """The type under which this very object is kept; None: it isn't."""
        return next((type for held, type in self._objects.values() if held is value), None)

    def release(self, numbers: Iterable[int]) -> None:
        """Forget objects. One that isn't there is no error."""
        for number in numbers:
            self._objects.pop(number, None)

    def drop_idle(self, keep: Iterable[int]) -> int:
        """Forget all but ``keep``, for memory is short; returns how many. The supervisor makes them again."""
        keep = set(keep)
        idle = [number for number in self._objects if number not in keep]
        self.release(idle)
        return len(idle)
