"""Warnings that are logged once in a fabric, however many workers or runs have cause for them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from vortex_worker.ipc.protocol import printable

if TYPE_CHECKING:
    from vortex_worker.supervisor.link import WorkerLink

_MOST = 10_000  # remembered: then all are forgotten, and may come again
log = logging.getLogger("vortex_worker")


class Once:
    """What was said already. Any thread."""

    def __init__(self) -> None:
        self._said: set[str] = set()
        self._looked_at: set[str] = set()  # workers

    def warn(self, text: str, more: str = "") -> None:
        """Log ``text`` and ``more``, unless ``text`` was logged before."""
        if text in self._said:
            return
        if len(self._said) >= _MOST:
            self._said.clear()
        self._said.add(text)
        log.warning("%s%s", text, more)

    def warn_of_failures(self, link: WorkerLink) -> None:
        """Log what a worker could not load, with tracebacks: every other lacks the same."""
        if link.worker_id in self._looked_at:
            return
        if len(self._looked_at) >= _MOST:
            self._looked_at.clear()
        self._looked_at.add(link.worker_id)
        partly = {op.source for op in link.capabilities.op_types}
        for failure, (plugin, message, traceback) in zip(link.plugin_errors, failures_of(link), strict=True):
            frames = traceback.rstrip().removesuffix(message).rstrip()
            what = f"a node of {plugin}" if failure.plugin in partly else plugin
            self.warn(f"{what} did not load: {message}", f"\n{frames}" if frames else "")

    def clear(self) -> None:
        """Forget: all may have changed."""
        self._said.clear()
        self._looked_at.clear()


def failures_of(link: WorkerLink) -> list[tuple[str, str, str]]:
    """``(plugin, message, traceback)`` of what a worker could not load, fit for a terminal."""
    return [(printable(e.plugin), printable(e.message), printable(e.traceback)) for e in link.plugin_errors]
