"""Starts a worker that tells of every call which the bootstrap policy has a line of its own for, instead of being
held to that policy.

    python recorded.py -P -m vortex_worker.main      (stands in for sys.executable)

The lines' calls wait for whoever listens at the Unix socket of ``PYTHON_VW_RECORDER``: it is sent the listener, decides
what the policy would say, and answers. The call that sends it can't wait, and so is not told of.
"""

from __future__ import annotations

import os
import runpy
import socket
import struct
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from vortex_worker._core import lockdown
from vortex_worker.sandbox import seccomp, stages

UNHEARD = "sendmsg"
LOAD, EQUAL, GIVE = 0x20, 0x15, 0x06
NOTIFY, ALLOW = 0x7FC0_0000, 0x7FFF_0000


def recorder(calls: Iterable[str]) -> bytes:
    """A filter that asks its listener about these calls, and allows all others."""
    code = [(LOAD, 0, 0, 0)]
    for call in calls:
        number = seccomp.number_of(call)
        if number is not None and number >= 0:
            code += [(EQUAL, 0, 1, number), (GIVE, 0, 0, NOTIFY)]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in (*code, (GIVE, 0, 0, ALLOW)))


def record() -> None:
    ours = socket.socket(socket.AF_UNIX)
    ours.connect(os.environ["PYTHON_VW_RECORDER"])
    filter = recorder(sys.argv[1].split(","))
    isolate, install = lockdown.isolate, stages._install

    def isolate_but_for_us(keep: Iterable[int], *, limits: Mapping[str, int] | None = None) -> None:
        isolate([*keep, ours.fileno()], limits=limits)

    def install_recorder(program: seccomp.Program, *, all_threads: bool, listener: bool = False) -> int:
        if program.name != "bootstrap":
            return install(program, all_threads=all_threads, listener=listener)
        found = lockdown.install_filter(filter, all_threads=False, listener=True)
        assert found is not None
        socket.send_fds(ours, [b"!"], [found])
        os.close(found)
        return -1

    lockdown.isolate = isolate_but_for_us  # type: ignore[assignment]
    stages._install = install_recorder


if __name__ == "__main__":
    record()
    assert sys.argv[2:4] == ["-P", "-m"], sys.argv
    module: Any = sys.argv[4]
    sys.argv = [module]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
