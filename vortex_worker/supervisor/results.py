"""Outputs of workflows' nodes, kept for the next run: a node whose signature is known isn't run again.

Bounded in bytes and in number, the least recently used go first; all go when memory is short. An entry is
given out only while everything in it is as it was: objects in their workers, files on disk, tensors unwritten.
Lists and dicts are copied in and out, for whoever has one may change it; tensors are not.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from vortex_worker.supervisor.objects import ObjectRef

_MOST = 1000  # entries: of what has no bytes of its own here


@dataclass(frozen=True, slots=True)
class Written:
    """A file as it was written."""

    path: str
    size: int
    modified_ns: int

    @classmethod
    def now(cls, path: str) -> Written:
        status = os.stat(path)
        return cls(path, status.st_size, status.st_mtime_ns)

    def stands(self) -> bool:
        try:
            return Written.now(self.path) == self
        except OSError:
            return False


@dataclass(slots=True)
class _Entry:
    outputs: dict[str, Any]
    files: list[Written]
    nbytes: int
    versions: list[int]


class Results:
    """Outputs by signature. Every method may be called from any thread."""

    def __init__(self, limit: int) -> None:
        """``limit``: bytes of tensors; 0 keeps nothing."""
        self._limit = limit
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, signature: bytes) -> tuple[dict[str, Any], list[str]] | None:
        """The outputs by port, and the files that were written; None if there are none that still hold."""
        with self._lock:
            entry = self._entries.get(signature)
            if entry is None:
                return None
            if not _holds(entry):
                self._drop(signature)
                return None
            self._entries.move_to_end(signature)
            return _copied(entry.outputs), [file.path for file in entry.files]

    def put(self, signature: bytes, outputs: Mapping[str, Any], files: list[str]) -> None:
        """Keep a node's outputs, unless they are larger than all that may be kept."""
        leaves = list(_leaves(dict(outputs)))
        nbytes = sum(leaf.nbytes for leaf in leaves if hasattr(leaf, "nbytes"))
        if not self._limit or nbytes > self._limit:
            return
        try:
            written = [Written.now(path) for path in files]
        except OSError:  # somebody took it away already
            return
        with self._lock:
            if signature in self._entries:
                self._drop(signature)
            self._entries[signature] = _Entry(_copied(dict(outputs)), written, nbytes, _versions(leaves))
            self._bytes += nbytes
            while self._bytes > self._limit or len(self._entries) > _MOST:
                self._drop(next(iter(self._entries)))

    def clear(self) -> int:
        """Forget all; returns how many there were."""
        with self._lock:
            count = len(self._entries)
            self._entries.clear()
            self._bytes = 0
            return count

    def _drop(self, signature: bytes) -> None:
        self._bytes -= self._entries.pop(signature).nbytes


def _holds(entry: _Entry) -> bool:
    leaves = list(_leaves(entry.outputs))
    if any(isinstance(leaf, ObjectRef) and leaf.home is None and not leaf.everywhere for leaf in leaves):
        return False  # gone with its worker: whoever asks makes it anew, with what it depends on
    return _versions(leaves) == entry.versions and all(file.stands() for file in entry.files)


def _copied(value: Any) -> Any:
    """The same leaves in containers of their own."""
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_copied, value))
    return value


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        for item in value.values():
            yield from _leaves(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


def _versions(leaves: list[Any]) -> list[int]:
    """How often each tensor was written to: the caller has the same ones, and may."""
    return [leaf._version for leaf in leaves if hasattr(leaf, "_version")]
