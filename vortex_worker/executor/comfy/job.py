"""The job that is running. ComfyUI's helpers are functions of modules, and know no node."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from vortex_worker.executor.context import JobContext

_running = [JobContext()]


def context() -> JobContext:
    """The running job's; outside of any, one that does nothing."""
    return _running[-1]


@contextmanager
def running(job: JobContext) -> Iterator[None]:
    """Let ``job`` be what runs."""
    _running.append(job)
    try:
        yield
    finally:
        _running.pop()
