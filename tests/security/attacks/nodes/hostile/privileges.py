"""Undoing the sandbox from within: its filter, its limits, its identity; and the signal that it kills with."""

from __future__ import annotations

import ctypes
import resource
import signal
import struct
import threading
from typing import Any

from .registry import FILTER, ISOLATION, LANDLOCK, VIEW, attack
from .tools import PAGE, carried_out, module, os, syscall, touch

_ALLOW_ALL = struct.pack("=HBBI", 6, 0, 0, 0x7FFF_0000)


def _program(code: bytes) -> tuple[bytes, Any]:
    """struct sock_fprog, and the buffer it points to."""
    buffer = ctypes.create_string_buffer(code, len(code))
    return struct.pack("=H6xQ", len(code) // 8, ctypes.addressof(buffer)), buffer


@attack("state", FILTER)
def second_filter(world: Any) -> None:
    """A filter of its own on top, which could turn refusals into lies."""
    program, _keep = _program(_ALLOW_ALL)
    syscall("seccomp", 1, 0, program)


@attack("state", FILTER)
def second_filter_by_prctl(world: Any) -> None:
    """The same by `prctl`."""
    program, _keep = _program(_ALLOW_ALL)
    syscall("prctl", 22, 2, program, 0, 0)


@attack("descriptors", FILTER)
def filter_with_a_listener(world: Any) -> None:
    """A filter whose notifications it answers itself: it could tell the kernel to let denied calls through."""
    program, _keep = _program(_ALLOW_ALL)
    syscall("seccomp", 1, 1 << 3, program)


@attack("claim", FILTER)
def another_landlock(world: Any) -> bool:
    """Landlock again, with rules of its own."""
    rules = syscall("landlock_create_ruleset", struct.pack("=Q", 1), 8, 0)
    return syscall("landlock_restrict_self", rules, 0) == 0


@attack("claim", FILTER)
def dumpable_again(world: Any) -> bool:
    """PR_SET_DUMPABLE: a core file, and others may trace it."""
    return syscall("prctl", 4, 1, 0, 0, 0) == 0 and syscall("prctl", 3, 0, 0, 0, 0) == 1


@attack("claim", FILTER)
def let_others_trace(world: Any) -> bool:
    """PR_SET_PTRACER: anybody may trace it. Kernels without Yama know no such setting, and say EINVAL."""
    return carried_out("prctl", 0x59616D61, -1, 0, 0, 0)


@attack("claim", FILTER)
def dispatch_system_calls(world: Any) -> bool:
    """PR_SET_SYSCALL_USER_DISPATCH: its own handler in place of the kernel, for calls of other code here."""
    return syscall("prctl", 59, 0, 0, 0, 0) == 0


@attack("claim", FILTER)
def move_the_heap(world: Any) -> bool:
    """PR_SET_MM, asked with PR_SET_MM_MAP_SIZE: another brk, other arguments in /proc."""
    size = bytes(4)
    return syscall("prctl", 35, 15, size, 0, 0) == 0


@attack("state", FILTER)
def change_a_limit(world: Any) -> None:
    """`setrlimit`."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (33, hard))


@attack("state", FILTER, ISOLATION)
def raise_a_limit(world: Any) -> None:
    """`setrlimit` above the hard limit: files may be written again."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 40))


@attack("state", FILTER, ISOLATION, also_off=(VIEW,))
def change_user(world: Any) -> None:
    """`setresuid`: become somebody else."""
    syscall("setresuid", 65534, 65534, 65534)


@attack("state", FILTER, ISOLATION)
def join_groups(world: Any) -> None:
    """`setgroups`."""
    syscall("setgroups", 1, struct.pack("=I", 6))


@attack("state", FILTER, ISOLATION)
def inherit_capabilities(world: Any) -> None:
    """`capset`: inheritable and ambient capabilities, for programs started later."""
    header, buffer = struct.pack("=Ii", 0x20080522, 0), ctypes.create_string_buffer(24)
    syscall("capget", header, buffer)
    effective, permitted, _ = struct.unpack_from("=III", buffer.raw)
    low = struct.pack("=III", effective or 0x20_0000, permitted or 0x20_0000, permitted or 0x20_0000)
    syscall("capset", header, low + buffer.raw[12:])


@attack("state", FILTER)
def personality(world: Any) -> None:
    """`personality`: no address space randomisation, READ_IMPLIES_EXEC."""
    syscall("personality", 0x0040000 | 0x0400000)


@attack("state", FILTER)
def change_umask(world: Any) -> None:
    """`umask`."""
    os.umask(0o777)


@attack("state", FILTER, LANDLOCK)
def working_directory(world: Any) -> None:
    """`fchdir` to a folder it may not read, to look round from there."""
    descriptor = os.open(world.outside, os.O_RDONLY | os.O_DIRECTORY)
    os.fchdir(descriptor)


# SIGSYS, which the filter kills with


@attack("files", FILTER, LANDLOCK)
def handle_the_signal(world: Any) -> None:
    """Handle SIGSYS, then a denied call."""
    signal.signal(signal.SIGSYS, lambda *_: None)
    os.execv("/bin/sh", touch(world))


@attack("files", FILTER, LANDLOCK)
def ignore_and_block_the_signal(world: Any) -> None:
    """Ignore and block SIGSYS, then a denied call."""
    signal.signal(signal.SIGSYS, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    os.execv("/bin/sh", touch(world))


@attack("files", FILTER, LANDLOCK)
def denied_call_in_a_thread(world: Any) -> None:
    """A denied call in a thread: that one alone would die, and the rest go on."""
    thread = threading.Thread(target=os.system, args=(touch(world)[2],))
    thread.start()
    thread.join()


@attack("files", FILTER, LANDLOCK)
def denied_call_without_descriptors(world: Any) -> None:
    """Close every descriptor, but the one whose end would be noticed, then a denied call: nowhere to log it."""
    os.closerange(0, world.socket)
    os.closerange(world.socket + 1, 256)
    os.execv("/bin/sh", touch(world))


@attack("files", FILTER, LANDLOCK)
def denied_call_after_scribbling(world: Any) -> None:
    """Fill its slot, and everybody's, with garbage, then a denied call."""
    ctypes.memset(world.slots + 64, 0xA5, PAGE - 64)
    os.execv("/bin/sh", touch(world))


@attack("files", FILTER, LANDLOCK)
def denied_call_at_exit(world: Any) -> None:
    """Leave a handler for the end of the process, then end it."""
    module("atexit").register(os.system, touch(world)[2])
    module("atexit")._run_exitfuncs()
