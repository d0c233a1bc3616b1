"""What the kernel tells of the system calls that a worker was denied (seccomp_unotify(2)).

A call that the filter denies never runs: its thread waits until somebody answers the filter's listener, which
the supervisor took while the worker was still trusted. The worker is killed. Number and
arguments come from the kernel, so hostile code can neither forge nor suppress them, whatever it does to its
signal handlers, descriptors or memory. The one answer there is, a refusal, goes to calls that libc makes with all
signals blocked: they must return before the worker can say where they came from.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import signal
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
_REFUSED = -errno.EPERM
_LINK = "anon_inode:seccomp notify"
_X32 = 0x4000_0000
_CLONE_THREAD = 0x1_0000  # clone(2)

_PROCESS, _NETWORK = "start a program or process", "use the network"
_FORKS = ("clone", "clone3", "fork", "vfork")
#: What calls are made for whose names say little to most people.
_DEEDS = {
    **dict.fromkeys((*_FORKS, "execve", "execveat"), _PROCESS),
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

    @property
    def blocks_signals(self) -> bool:
        """Whether it starts a process, in a thread that can't be asked where it was: libc blocks all signals for it.

        posix_spawn, vfork as Python's ``subprocess`` calls it, and fork do; proc(5) says whether this one did.
        """
        if self.call not in _FORKS:
            return False
        try:
            with open(f"/proc/{self.thread}/status") as status:
                blocked = next((line.split()[1] for line in status if line.startswith("SigBlk:")), "0")
        except OSError:
            return False  # it is gone
        return bool(int(blocked, 16) >> (signal.SIGSYS - 1) & 1)

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
        if not self._events() & select.POLLIN:
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

    def hung_up(self) -> bool:
        """Whether no process is left that the filter holds: nothing comes any more (seccomp_unotify(2), POLLHUP)."""
        return bool(self._events() & select.POLLHUP)

    def _events(self) -> int:
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        return sum(events for _, events in poll.poll(0))

    def refuse(self, denial: Denial) -> None:
        """Have the call fail with EPERM instead of waiting: its thread goes on."""
        with contextlib.suppress(OSError):  # as below
            fcntl.ioctl(self.fd, _SEND, _RESPONSE.pack(denial.id, 0, _REFUSED, 0))

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
