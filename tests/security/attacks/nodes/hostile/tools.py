"""What the attacks are made with: modules that the import hook would refuse, system calls, machine code."""

from __future__ import annotations

import ctypes
import errno
import mmap
import struct
import sys
from collections.abc import Callable
from typing import Any

# Around the import hook, in one of the ways that escapes.py is about.
os = sys.modules["os"]

from vortex_worker.sandbox import seccomp  # noqa: E402 - for the numbers of this architecture

PAGE = mmap.PAGESIZE
AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


def module(name: str) -> Any:
    """Any module, also one that the hook refuses to nodes: found by the import system's own import."""
    return sys.modules["importlib"]._bootstrap._gcd_import(name)


def syscall(name: str, *args: int | bytes | None) -> int:
    """One system call with nothing in between; OSError with its errno."""
    number = seccomp.number_of(name)
    if number is None or number < 0:
        raise OSError(errno.ENOSYS, f"{name} is not a call of this architecture")
    words = [ctypes.c_void_p(a) if isinstance(a, int) else a for a in args]
    result = libc.syscall(ctypes.c_long(number), *words)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), name)
    return int(result)


def carried_out(name: str, *args: int | bytes | None) -> bool:
    """Whether the kernel carried the call out, or refused it for its arguments: it got as far as that."""
    try:
        syscall(name, *args)
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EACCES, errno.ENOSYS):
            raise
    return True


def strings(*items: str) -> Any:
    """A C array of strings that ends with NULL. Keep it as long as its address is used."""
    return (ctypes.c_char_p * (len(items) + 1))(*map(os.fsencode, items), None)


def environment() -> Any:
    return strings(*(f"{name}={value}" for name, value in os.environ.items()))


def vector(address: int, size: int) -> bytes:
    """struct iovec."""
    return struct.pack("=QQ", address, size)


def machine_code(code: bytes) -> Callable[[], int]:
    """A function of these instructions: possible after lockdown too, as docs/sandbox.md says."""
    address = syscall("mmap", 0, PAGE, 7, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    ctypes.memmove(address, code, len(code))
    return ctypes.CFUNCTYPE(ctypes.c_long)(address)


def touch(world: Any) -> list[str]:
    """The command line of a program that leaves a file behind."""
    return ["sh", "-c", f": > {world.outside}/executed"]


def linger() -> None:
    """In a child: be there long enough to be seen. Whoever looks ends it."""
    module("time").sleep(5)
    os._exit(0)
