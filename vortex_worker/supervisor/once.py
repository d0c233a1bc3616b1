"""Warnings that are logged once in a fabric, however many workers or runs have cause for them."""

from __future__ import annotations

import logging
import re
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

    def warn(self, text: str, more: str = "", about: str = "") -> None:
        """Log ``text``, unless it was logged before; ``more`` for those who want to know more (logging.INFO).

        Args:
            about: if given, nothing else about the same is logged again, either.
        """
        if (about or text) in self._said:
            return
        if len(self._said) >= _MOST:
            self._said.clear()
        self._said.add(about or text)
        log.warning("%s", text)
        if more:
            log.info("%s", more)

    def warn_of_failures(self, link: WorkerLink) -> None:
        """Log what a worker could not load, a line each: every other lacks the same. Tracebacks are logging.INFO."""
        if link.worker_id in self._looked_at:
            return
        if len(self._looked_at) >= _MOST:
            self._looked_at.clear()
        self._looked_at.add(link.worker_id)
        partly = {op.source for op in link.capabilities.op_types}
        for failure, (plugin, message, traceback) in zip(link.plugin_errors, failures_of(link), strict=True):
            what = f"a node of {plugin}" if failure.plugin in partly else plugin
            place = _place_of(traceback, plugin)
            where = f" ({place})" if place and place not in message else ""
            self.warn(f"{what} did not load: {message}{where}", traceback.rstrip())

    def clear(self) -> None:
        """Forget: all may have changed."""
        self._said.clear()
        self._looked_at.clear()


def _place_of(traceback: str, plugin: str) -> str:
    """The innermost line of the plugin's own code, as ``file:line``; "" if none is there."""
    folder, _, name = plugin.rpartition("/")
    root = name if folder == name else plugin  # a folder that is a pack itself
    inside = re.compile(rf'  File "(.*/{re.escape(root)}(?:\.py|/.*))", line (\d+)')
    places = [match.expand(r"\1:\2") for line in traceback.splitlines() if (match := inside.match(line))]
    return places[-1] if places else ""


def failures_of(link: WorkerLink) -> list[tuple[str, str, str]]:
    """``(plugin, message, traceback)`` of what a worker could not load, fit for a terminal."""
    return [(printable(e.plugin), printable(e.message), printable(e.traceback)) for e in link.plugin_errors]
