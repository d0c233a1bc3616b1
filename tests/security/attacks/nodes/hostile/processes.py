"""Processes and threads: made, multiplied, left behind. The bombs are bounded: nobody should try more on a host."""

from __future__ import annotations

import signal
import struct
import threading
from typing import Any

from .registry import FILTER, attack
from .tools import linger, module, os, syscall

_BOMB = 32  # processes; without a filter, only a limit on processes would stop it, and that does not bind root


@attack("processes", FILTER)
def fork(world: Any) -> None:
    """`fork`."""
    if os.fork() == 0:
        linger()


@attack("processes", FILTER)
def fork_bomb(world: Any) -> None:
    """A fork bomb; bounded to 32 processes."""
    for _ in range(_BOMB):
        if os.fork() == 0:
            linger()


@attack("processes", FILTER)
def fork_in_a_thread(world: Any) -> None:
    """`fork` from a second thread."""
    thread = threading.Thread(target=fork, args=(world,))
    thread.start()
    thread.join()


@attack("processes", FILTER)
def daemon(world: Any) -> None:
    """A double fork and a session of its own, to outlive the worker."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            linger()
        os._exit(0)
    module("time").sleep(0.05)


@attack("processes", FILTER)
def clone(world: Any) -> None:
    """`clone` with flags of a process."""
    if syscall("clone", signal.SIGCHLD, 0, 0, 0, 0) == 0:
        linger()


@attack("processes", FILTER)
def clone_for_the_parent(world: Any) -> None:
    """`clone` with CLONE_PARENT: a child for the zygote, which would outlive the worker unseen."""
    if syscall("clone", 0x8000 | signal.SIGCHLD, 0, 0, 0, 0) == 0:
        linger()


@attack("processes", FILTER)
def clone_with_garbage_above(world: Any) -> None:
    """`clone` with bits set in the half of the flags that the kernel ignores."""
    if syscall("clone", 1 << 40 | signal.SIGCHLD, 0, 0, 0, 0) == 0:
        linger()


@attack("processes", FILTER)
def clone_into_a_user_namespace(world: Any) -> None:
    """`clone` into new user, mount and network namespaces, where it would be root."""
    if syscall("clone", 0x1000_0000 | 0x0002_0000 | 0x4000_0000 | signal.SIGCHLD, 0, 0, 0, 0) == 0:
        linger()


@attack("processes", FILTER)
def clone3(world: Any) -> None:
    """`clone3`, whose flags no filter can see."""
    args = struct.pack("=8Q", 0, 0, 0, 0, signal.SIGCHLD, 0, 0, 0)
    if syscall("clone3", args, len(args)) == 0:
        linger()


@attack("processes", FILTER)
def pidfd_of_a_child(world: Any) -> None:
    """`clone` with CLONE_PIDFD, which gives a descriptor beside the process."""
    descriptor = bytes(4)
    if syscall("clone", 0x1000 | signal.SIGCHLD, 0, descriptor, 0, 0) == 0:
        linger()


@attack("claim", FILTER)
def become_a_reaper(world: Any) -> bool:
    """PR_SET_CHILD_SUBREAPER: orphans of its own would stay with it."""
    return syscall("prctl", 36, 1, 0, 0, 0) == 0


@attack("claim", FILTER)
def outlive_the_parent(world: Any) -> bool:
    """PR_SET_PDEATHSIG: no signal when its parent dies."""
    return syscall("prctl", 1, 0, 0, 0, 0) == 0
