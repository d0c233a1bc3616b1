"""Starts a process of vortex-worker's with some layers of its sandbox off, to show that attacks then succeed.

    python weakened.py LAYER,LAYER -P -c PROGRAM
    python weakened.py LAYER,LAYER -P -m MODULE

It stands in for the Python interpreter that the supervisor starts (``sys.executable``). The program that runs is the
installed one; only what puts the layer in force is taken from it, and where the product itself can go without a layer
(``allow_unsandboxed``), the layer is made to look as if the kernel lacked it.
"""

from __future__ import annotations

import ctypes
import mmap
import runpy
import sys
from collections.abc import Iterable, Mapping
from typing import Any


def without_filter() -> None:
    from vortex_worker.sandbox import seccomp

    seccomp.available = lambda: False


def without_landlock() -> None:
    from vortex_worker._core import lockdown

    lockdown.landlock_abi = lambda: 0  # type: ignore[assignment]


def without_view() -> None:
    from vortex_worker._core import lockdown

    def enter_view(shown: Iterable[bytes], links: Iterable[tuple[bytes, bytes]] = ()) -> None:
        raise PermissionError(1, "no view for this scene")

    lockdown.enter_view = enter_view


def without_isolation() -> None:
    """All of S0 but no_new_privs, without which the other layers can't be had."""
    from vortex_worker._core import lockdown

    def isolate(keep: Iterable[int], *, limits: Mapping[str, int] | None = None) -> None:
        assert ctypes.CDLL(None).prctl(38, 1, 0, 0, 0) == 0

    lockdown.isolate = isolate  # type: ignore[assignment]


def without_mapping() -> None:
    """The arena's read-only mapping is laid over with a writable one, while there is a descriptor for it."""
    from vortex_worker import membership
    from vortex_worker._core.arena import Arena

    class Writable:
        @staticmethod
        def attach(*args: int) -> Any:
            arena = Arena.attach(*args)
            libc = ctypes.CDLL(None)
            libc.mmap.restype = ctypes.c_void_p
            libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
            flags = mmap.MAP_SHARED | 0x10  # MAP_FIXED
            assert libc.mmap(arena.address, arena.size, 3, flags, arena.fd, 0) == arena.address
            return arena

    membership.Arena = Writable  # type: ignore[misc,assignment]


OFF = {
    "filter": without_filter,
    "Landlock": without_landlock,
    "view": without_view,
    "isolation": without_isolation,
    "mapping": without_mapping,
}

if __name__ == "__main__":
    for layer in sys.argv[1].split(","):
        OFF[layer]()
    safely, how, program = sys.argv[2:]
    assert (safely, how) in (("-P", "-c"), ("-P", "-m")), sys.argv
    sys.argv = [program]
    if how == "-c":
        exec(program)
    else:
        runpy.run_module(program, run_name="__main__", alter_sys=True)
