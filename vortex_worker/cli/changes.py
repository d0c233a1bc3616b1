"""What ``--watch`` waits for: a change of the workflow, of files that it names, or of custom nodes."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice

_PAUSE = 0.3  # s between looks: a person saves a file, and looks up
_SETTLE = 0.1  # s without another change until a file counts as written
_STRING = re.compile(r'"([^"\\\x00]{1,255})"')
_LARGEST = 4 << 20  # characters of a workflow that are looked through
_MOST = 2000  # files looked at: more would be a folder that was not meant


class Changes:
    """Looks at times and sizes; a change that comes and goes between two looks is none."""

    def __init__(self, workflow: str, custom_nodes: Iterable[str]) -> None:
        self._workflow = os.path.abspath(workflow)
        self._nodes = tuple(custom_nodes)
        self._last = self._now()

    def wait(self) -> bool:
        """Wait for a change since the last one that was told. Returns whether it was one of code."""
        while True:
            now = self._now()
            if now != self._last:
                time.sleep(_SETTLE)
                if now != (now := self._now()):
                    continue  # somebody is still writing
                changed = {path for path, _ in set(now.items()) ^ set(self._last.items())}
                self._last = now
                return any(path.endswith(".py") for path in changed)
            time.sleep(_PAUSE)

    def _now(self) -> dict[str, tuple[int, int]]:
        found = {}
        for path in islice(self._files(), _MOST):
            try:
                status = os.stat(path)
            except OSError:
                continue
            found[path] = (status.st_mtime_ns, status.st_size)
        return found

    def _files(self) -> Iterator[str]:
        """The workflow, whatever beside or below it one of its strings names, and custom nodes with all below them."""
        yield self._workflow
        with suppress(OSError), open(self._workflow, encoding="utf-8", errors="replace") as file:  # it may have gone
            for name in set(_STRING.findall(file.read(_LARGEST))):
                path = os.path.join(os.path.dirname(self._workflow), name)
                if os.path.isfile(path):
                    yield path
        for root in self._nodes:
            for folder, inner, files in os.walk(root):
                inner[:] = [name for name in inner if name != "__pycache__" and not name.startswith(".")]
                yield from (os.path.join(folder, name) for name in files if name.endswith(".py"))
