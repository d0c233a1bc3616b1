"""What the kernel tells of the system calls that a worker was denied (seccomp_unotify(2)).

A call that the filter denies never runs: its thread waits until somebody answers the filter's listener, which
the supervisor took while the worker was still trusted. Nobody answers here; the worker is killed. Number and
arguments come from the kernel, so hostile code can neither forge nor suppress them, whatever it does to its
signal handlers, descriptors or memory.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import struct
from typing import NamedTuple

from vortex_worker.errors import LaunchError
from vortex_worker.sandbox import bpf

# struct seccomp_notif: u64 id; u32 pid, flags; struct seccomp_data {int nr; u32 arch; u64 address, args[6]}
_NOTIFICATION = struct.Struct("=QIIiIQ6Q")
_RECEIVE = 0xC050_2100  # SECCOMP_IOCTL_NOTIF_RECV
# struct seccomp_notif_resp: u64 id; s64 value; s32 error; u32 flags
_RESPONSE = struct.Struct("=QqiI")
_SEND = 0xC018_2101  # SECCOMP_IOCTL_NOTIF_SEND
_CONTINUE = 1  # SECCOMP_USER_NOTIF_FLAG_CONTINUE
_LINK = "anon_inode:seccomp notify"
_X32 = 0x4000_0000
_CLONE_THREAD = 0x1_0000  # clone(2)

_PROCESS, _NETWORK = "start a program or process", "use the network"
#: What calls are made for whose names say little to most people.
_DEEDS = {
    **dict.fromkeys(("clone", "clone3", "fork", "vfork", "execve", "execveat"), _PROCESS),
    **dict.fromkeys(("socket", "connect"), _NETWORK),
}


class Denial(NamedTuple):
    """One denied call."""

    call: str  # its name; "unknown(1234)" where it has none
    number: int
    args: tuple[int, ...]  # the six registers, whatever the call makes of them
    thread: int  # which made it
    native: bool  # whether it is a call of this architecture, so that a policy could mention it
    id: int  # by which the kernel knows it

    def __str__(self) -> str:
        return f"{self.call} (system call {self.number}, registers {', '.join(map(_argument, self.args))})"

    @property
    def deed(self) -> str:
        """What it was for, in words that follow "tried to"; "" where its name must do."""
        if self.call == "clone" and self.args[0] & _CLONE_THREAD:
            return ""
        return _DEEDS.get(self.call, "")

    def details(self) -> dict[str, str]:
        """For a job's error."""
        return {
            "syscall": self.call,
            "syscall_number": str(self.number),
            "syscall_args": ", ".join(map(_argument, self.args)),
        }


class Listener:
    """The listening end of one worker's filter. Owns its descriptor."""

    def __init__(self, fd: int) -> None:
        """Raises LaunchError, and closes ``fd``, if it is anything else."""
        self.fd = fd
        if os.readlink(f"/proc/self/fd/{fd}") != _LINK:
            self.close()
            raise LaunchError("the descriptor beside its handshake is no seccomp listener")

    def receive(self) -> Denial | None:
        """The next denied call that nobody has heard of; None if there is none. Never waits."""
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        if not any(events & select.POLLIN for _, events in poll.poll(0)):
            return None
        message = bytearray(_NOTIFICATION.size)
        try:
            fcntl.ioctl(self.fd, _RECEIVE, message)
        except OSError:
            return None  # ENOENT: a signal took the thread out of the call, which has failed
        id, thread, _, number, arch, _, *args = _NOTIFICATION.unpack(message)
        number &= 0xFFFF_FFFF
        name = _name(number, arch)
        native = arch == bpf.NATIVE and not number & _X32 and not name.startswith("unknown")
        return Denial(name, number, tuple(args), thread, native, id)

    def let_through(self, denial: Denial) -> None:
        """Have the call carried out all the same: only where that is what somebody wants to learn from."""
        with contextlib.suppress(OSError):  # ENOENT: its thread is gone, or was taken out of the call
            fcntl.ioctl(self.fd, _SEND, _RESPONSE.pack(denial.id, 0, 0, _CONTINUE))

    def close(self) -> None:
        """Idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _argument(value: int) -> str:
    return str(value) if value < 4096 else hex(value)


def _name(number: int, arch: int) -> str:
    from vortex_worker._core._seccomp import ffi, lib  # only where there are listeners, so it is there

    wide = number & _X32 and number != 0xFFFF_FFFF
    found = lib.seccomp_syscall_resolve_num_arch(lib.SCMP_ARCH_X32 if wide else arch, _signed(number))
    if found == ffi.NULL:
        return f"unknown({_signed(number)})"
    try:
        return str(ffi.string(found), "ascii")
    finally:
        lib.free(found)


def _signed(number: int) -> int:
    return number - (1 << 32) if number >> 31 else number
