"""Ending the process that a node runs in. In one process with its supervisor, each of these ends the supervisor."""

from __future__ import annotations

import ctypes
import signal
import sys
import threading
import types
from typing import Any

from .registry import PROCESS, attack
from .tools import libc, machine_code, module, os

crash = attack("death", PROCESS)


@crash
def null_pointer(world: Any) -> None:
    """`ctypes.string_at(0)`: a NULL dereference."""
    ctypes.string_at(0)


@crash
def null_pointer_in_a_thread(world: Any) -> None:
    """The same in a thread, while the job waits for it."""
    thread = threading.Thread(target=ctypes.string_at, args=(0,))
    thread.start()
    thread.join()


@crash
def wild_write(world: Any) -> None:
    """A write to an address that is nobody's."""
    ctypes.memset(0x1000, 0, 8)


@crash
def corrupt_the_heap(world: Any) -> None:
    """`free` of what was never allocated."""
    libc.free(ctypes.c_void_p(id(world) + 8))


@crash
def forge_an_object(world: Any) -> None:
    """A Python object whose type is nowhere."""
    forged = ctypes.c_size_t(0)
    buffer = (ctypes.c_size_t * 2)(1 << 30, 0x10)
    forged.value = ctypes.addressof(buffer)
    repr(ctypes.cast(forged.value, ctypes.py_object).value)


@crash
def overflow_the_stack(world: Any) -> None:
    """Recursion in Python with its limit lifted, through C each time."""
    sys.setrecursionlimit(1 << 30)
    threading.stack_size(0)

    class Deep:
        def __repr__(self) -> str:
            return repr([self])

    nested: Any = []
    for _ in range(1_000_000):
        nested = [nested]
    repr(nested)
    ctypes.string_at(0)  # newer interpreters notice the depth by themselves


@crash
def garbage_as_bytecode(world: Any) -> None:
    """`code.replace(co_code=…)`: an instruction that takes from an empty stack, and a local that is not there."""

    def innocent() -> None:
        return None

    garbage = bytes([100, 255] * 8 + [1, 0] * 200 + [83, 0])
    types.FunctionType(innocent.__code__.replace(co_code=garbage, co_consts=()), {})()


@crash
def abort(world: Any) -> None:
    """`abort`."""
    os.abort()


@crash
def exit_at_once(world: Any) -> None:
    """`os._exit`, with the status of success."""
    os._exit(0)


@crash
def forbidden_instruction(world: Any) -> None:
    """Machine code that is none."""
    machine_code(b"\x0f\x0b" if module("platform").machine() == "x86_64" else b"\0\0\0\0")()


@crash
def raise_a_signal(world: Any) -> None:
    """SIGTERM to itself."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.raise_signal(signal.SIGTERM)


@crash
def fatal_error(world: Any) -> None:
    """`Py_FatalError`."""
    ctypes.pythonapi.Py_FatalError(b"so it ends")
