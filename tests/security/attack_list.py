"""The list of attacks: what there is to attack, how each should end, and how it ends with the sandbox off."""

from __future__ import annotations

import errno
import mmap
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from sandbox_child import Outcome, raised, syscall

x86_64 = platform.machine() == "x86_64"

AT_FDCWD = -100
PAGE = mmap.PAGESIZE


class World(NamedTuple):
    """What there is to attack: made before the child forks, and looked at after it ended."""

    readable: Path  # below it, the worker may read
    secret: Path  # it may not read this
    data: Path  # a readable file of two pages
    sibling: int  # another process of the same user
    listener: str  # path of a listening Unix socket
    unix: int  # an unconnected Unix socket that the child has already
    inet: int  # the same of the internet
    port: int  # a listening TCP port on this host
    terminal: int  # a terminal that the child has a descriptor of
    shared: int  # a memory file of two pages, of which …
    lease: int  # … the first is mapped read-write at this address


Attack = Callable[[World], Any]
ATTACKS: dict[str, tuple[Attack, Outcome, Outcome | None]] = {}


def attack(expected: Outcome, control: Outcome | None = None) -> Callable[[Attack], Attack]:
    """Register one. ``control``: how it ends without a sandbox; None where nobody should try."""

    def register(function: Attack) -> Attack:
        ATTACKS[function.__name__] = (function, expected, control)
        return function

    return register


WORKS = Outcome("returned", True)
REPLACED = Outcome("exited", 0)  # the process became another program
EACCES, ENOTTY = raised("EACCES"), raised("ENOTTY")
REFUSED_BY_THE_MACHINE = ("EPERM", "ENOSYS", "EIO", "SIGSEGV")  # EIO: no TIOCSTI. SIGSEGV: no 32-bit calls


def reaches_the_kernel(name: str, *args: int | bytes) -> bool:
    """True if the call was carried out, or refused by the call itself rather than by a filter."""
    try:
        syscall(name, *args)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.ENOSYS):
            raise
    return True
