"""Attacks on the kernel's larger doors, and on the sandbox itself."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import mmap
import os
import resource
import signal
import struct
import threading
from collections.abc import Callable

from attack_list import (
    AT_FDCWD,
    ENOTTY,
    PAGE,
    WORKS,
    World,
    attack,
    reaches_the_kernel,
    x86_64,
)
from sandbox_child import KILLED, libc, raised, syscall

# The kernel's larger doors


@attack(KILLED, WORKS)
def io_uring_setup(world: World) -> bool:
    return reaches_the_kernel("io_uring_setup", 4, bytes(120))


@attack(KILLED, WORKS)
def bpf_map(world: World) -> bool:
    return reaches_the_kernel("bpf", 0, struct.pack("=IIIII", 2, 4, 4, 1, 0) + bytes(100), 72)


@attack(KILLED, WORKS)
def perf_event_open(world: World) -> bool:
    return reaches_the_kernel("perf_event_open", bytes(136), 0, -1, -1, 0)


@attack(KILLED, WORKS)
def userfaultfd(world: World) -> bool:
    return reaches_the_kernel("userfaultfd", os.O_CLOEXEC)


@attack(KILLED, WORKS)
def keyctl(world: World) -> bool:
    return reaches_the_kernel("keyctl", 0, -3, 0)


@attack(KILLED, WORKS)
def add_key(world: World) -> bool:
    return reaches_the_kernel("add_key", b"user", b"x", b"y", 1, -2)


@attack(KILLED, WORKS)
def unshare(world: World) -> bool:
    return reaches_the_kernel("unshare", 0x1000_0000)  # CLONE_NEWUSER


@attack(KILLED, WORKS)
def setns(world: World) -> bool:
    return reaches_the_kernel("setns", world.unix, 0)


@attack(KILLED, WORKS)
def mount(world: World) -> bool:
    return reaches_the_kernel("mount", b"none", b"/nowhere", b"tmpfs", 0, 0)


@attack(KILLED, WORKS)
def chroot(world: World) -> bool:
    return reaches_the_kernel("chroot", b"/nowhere")


@attack(KILLED, WORKS)
def open_by_handle(world: World) -> bool:
    return reaches_the_kernel("open_by_handle_at", AT_FDCWD, bytes(24), 0)


@attack(KILLED, WORKS)
def personality(world: World) -> bool:
    return syscall("personality", 0xFFFF_FFFF) >= 0  # only asks


@attack(KILLED, WORKS)
def setuid(world: World) -> bool:
    return reaches_the_kernel("setuid", 0)


@attack(KILLED, WORKS)
def init_module(world: World) -> bool:
    return reaches_the_kernel("init_module", b"", 0, b"")


@attack(KILLED, WORKS)
def kernel_log(world: World) -> bool:
    return reaches_the_kernel("syslog", 10, 0, 0)


# Undoing the sandbox itself


@attack(KILLED, WORKS)
def second_filter(world: World) -> bool:
    """A filter of the attacker's own could turn denied calls into false answers."""
    if os.environ.get("VW_CONTROL"):
        libc.prctl(38, 1, 0, 0, 0)  # no_new_privs, which the sandbox has set
    allow = ctypes.create_string_buffer(struct.pack("=HBBI", 6, 0, 0, 0x7FFF_0000))
    return syscall("seccomp", 1, 0, struct.pack("=H6xQ", 1, ctypes.addressof(allow))) == 0


@attack(KILLED, WORKS)
def dumpable_again(world: World) -> bool:
    return syscall("prctl", 4, 1, 0, 0, 0) == 0


@attack(KILLED, WORKS)
def let_others_trace(world: World) -> bool:
    return reaches_the_kernel("prctl", 0x59616D61, 1, 0, 0, 0)


@attack(raised("ValueError: not allowed to raise maximum limit"), WORKS)  # Python's words for EPERM
def raise_a_limit(world: World) -> bool:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    return True


@attack(KILLED, WORKS)
def another_landlock(world: World) -> bool:
    return syscall("landlock_create_ruleset", struct.pack("=Q", 1), 8, 0) > 0


@attack(ENOTTY, WORKS)
def type_into_the_terminal(world: World) -> bool:
    fcntl.ioctl(world.terminal, 0x5412, b"x")  # TIOCSTI
    return True


@attack(ENOTTY, WORKS)
def type_into_the_terminal_with_a_garbage_high_word(world: World) -> bool:
    return syscall("ioctl", world.terminal, 0x1_0000_5412, b"x") == 0


@attack(KILLED, WORKS)
def handle_the_filters_signal(world: World) -> bool:
    """KILL_PROCESS asks no handler, and none can be installed."""
    with contextlib.suppress(PermissionError):
        signal.signal(signal.SIGSYS, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGSYS])
    return syscall("getpgid", 0) > 0


@attack(KILLED, WORKS)
def from_another_thread(world: World) -> bool:
    """The whole process dies, not the one thread: that would take Python's lock along, and hang the rest."""
    done: list[int] = []
    thread = threading.Thread(target=lambda: done.append(syscall("getpgid", 0)))
    thread.start()
    thread.join()
    return bool(done)


def machine_code(code: bytes) -> Callable[[], int]:
    """A function of these instructions: possible after lockdown too, as docs/sandbox.md says."""
    address = syscall("mmap", 0, PAGE, 7, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    ctypes.memmove(address, code, len(code))
    return ctypes.CFUNCTYPE(ctypes.c_int)(address)


if x86_64:

    @attack(KILLED, WORKS)
    def call_as_i386(world: World) -> bool:
        """int 0x80: the 32-bit table, where 20 is getpid."""
        return machine_code(b"\xb8\x14\0\0\0\xcd\x80\xc3")() == os.getpid()

    @attack(KILLED, raised("ENOSYS"))
    def call_as_x32(world: World) -> bool:
        number = 0x4000_0000 | 39  # getpid of the x32 table, a call that is allowed by its own name
        if libc.syscall(ctypes.c_long(number)) < 0:
            raise OSError(ctypes.get_errno(), "x32")
        return True

    @attack(KILLED, WORKS)
    def call_without_the_c_library(world: World) -> bool:
        """Own instructions make the same calls: mov eax, 57 (fork); syscall; ret."""
        pid = machine_code(b"\xb8\x39\0\0\0\x0f\x05\xc3")()
        if pid == 0:
            os._exit(0)
        return os.waitpid(pid, 0)[1] == 0
