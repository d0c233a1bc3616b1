"""Structured logs: one JSON object a line, to stderr.

``{"time": "2026-11-24T02:51:07.123456Z", "level": "info", "worker_id": "w0", "job_id": 7,
"event": "job.done", "fields": {"execute_ms": 1.25}}``

A worker writes with one ``write(2)`` a line, so that lines of several threads never mix, and
never raises: a log that can't be written is dropped.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from typing import Any

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_LINE_LIMIT = 64 << 10  # 64 KiB
_TEXT_LIMIT = 8 << 10  # 8 KiB of one field: a longer traceback is cut, the line stays whole JSON


class Logger:
    """Writes events of one worker. ``job_id`` is set while a job runs, 0 otherwise."""

    def __init__(self, worker_id: str, level: str = "info", fd: int = 2) -> None:
        self.worker_id = worker_id
        self.job_id = 0
        self._threshold = LEVELS[level]
        self._fd = fd

    def enabled(self, level: str) -> bool:
        """Whether ``level`` is written: ask before building costly fields."""
        return LEVELS[level] >= self._threshold

    def log(self, level: str, event: str, **fields: Any) -> None:
        """Write one line, if ``level`` is enabled. Values that JSON lacks are written as text."""
        if LEVELS[level] < self._threshold:
            return
        now = time.time_ns()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now // 1_000_000_000))
        line = json.dumps(
            {
                "time": f"{stamp}.{now // 1000 % 1_000_000:06d}Z",
                "level": level,
                "worker_id": self.worker_id,
                "job_id": self.job_id,
                "event": event,
                "fields": {
                    key: f"{value[:_TEXT_LIMIT]}…" if isinstance(value, str) and len(value) > _TEXT_LIMIT else value
                    for key, value in fields.items()
                },
            },
            default=str,
            ensure_ascii=True,
        )
        data = line.encode("ascii") + b"\n"
        try:
            os.write(self._fd, data)
        except OSError:
            pass  # nobody reads any more; the socket's end will say so properly

    def debug(self, event: str, **fields: Any) -> None:
        self.log("debug", event, **fields)

    def info(self, event: str, **fields: Any) -> None:
        self.log("info", event, **fields)

    def warning(self, event: str, **fields: Any) -> None:
        self.log("warning", event, **fields)

    def error(self, event: str, **fields: Any) -> None:
        self.log("error", event, **fields)


class LineReader:
    """Cuts a worker's stderr into lines for the supervisor: hostile bytes in, printable text out.

    A line over the limit is cut, control characters are escaped, and at most ``burst`` lines are
    passed on per second, a long one counting as one for each KiB: a node can't fill the disk with its log.
    """

    def __init__(self, emit: Callable[[str], None], burst: int = 1000) -> None:
        self._emit = emit
        self._burst = burst
        self._pending = b""
        self._window = 0.0
        self._count = 0
        self.dropped = 0

    def feed(self, data: bytes) -> None:
        *lines, self._pending = (self._pending + data).split(b"\n")
        if len(self._pending) > _LINE_LIMIT:
            lines.append(self._pending)
            self._pending = b""
        for line in lines:
            self._pass(line)

    def close(self) -> None:
        """Pass on what is left without a line's end."""
        if self._pending:
            self._pass(self._pending)
            self._pending = b""

    def _pass(self, line: bytes) -> None:
        now = time.monotonic()
        if now - self._window >= 1.0:
            self._window, self._count = now, 0
        self._count += 1 + len(line) // 1024
        if self._count > self._burst:
            self.dropped += 1
            return
        self._emit(one_line(line[:_LINE_LIMIT].decode("utf-8", "backslashreplace")))


def one_line(text: str) -> str:
    """``text`` fit for a terminal and for one line of a log: whatever can't be printed written out."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
