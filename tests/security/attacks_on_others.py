"""Attacks on other programs and processes, and over the network."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import signal
import socket
import struct

from attack_list import (
    AT_FDCWD,
    EACCES,
    REPLACED,
    WORKS,
    World,
    attack,
)
from sandbox_child import KILLED, raised, syscall

# Other programs and processes


@attack(KILLED, REPLACED)
def execve(world: World) -> None:
    os.execv("/bin/true", ["true"])


@attack(KILLED, REPLACED)
def execveat(world: World) -> None:
    argv = (ctypes.c_char_p * 2)(b"true", None)
    syscall("execveat", AT_FDCWD, b"/bin/true", ctypes.addressof(argv), 0, 0)


@attack(KILLED, WORKS)
def fork(world: World) -> bool:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    return os.waitpid(pid, 0)[1] == 0


@attack(KILLED, WORKS)
def posix_spawn(world: World) -> bool:
    return os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)[1] == 0


@attack(KILLED, WORKS)
def shell(world: World) -> bool:
    return os.system("true") == 0


@attack(EACCES, WORKS)
def subprocess(world: World) -> bool:
    """Ordinary code's way: refused softly, at the pipe that it opens first."""
    import subprocess

    return subprocess.run(["/bin/true"], check=True).returncode == 0


@attack(KILLED, WORKS)
def clone_as_a_process(world: World) -> bool:
    pid = syscall("clone", signal.SIGCHLD, 0, 0, 0, 0)
    if pid == 0:
        os._exit(0)
    return os.waitpid(pid, 0)[1] == 0


@attack(raised("ENOSYS"), WORKS)
def clone3_as_a_process(world: World) -> bool:
    args = struct.pack("=8Q", 0, 0, 0, 0, signal.SIGCHLD, 0, 0, 0)
    pid = syscall("clone3", args, len(args))
    if pid == 0:
        os._exit(0)
    return os.waitpid(pid, 0)[1] == 0


@attack(KILLED, WORKS)
def kill_a_sibling(world: World) -> bool:
    os.kill(world.sibling, 0)
    return True


@attack(KILLED, WORKS)
def tgkill_a_sibling(world: World) -> bool:
    return syscall("tgkill", world.sibling, world.sibling, 0) == 0


@attack(KILLED, WORKS)
def signal_a_sibling_by_descriptor(world: World) -> bool:
    return os.pidfd_open(world.sibling) > 0


@attack(KILLED, WORKS)
def signal_a_sibling_by_ownership(world: World) -> bool:
    """F_SETOWN names who gets SIGIO of a descriptor: a signal by another road."""
    fcntl.fcntl(world.unix, fcntl.F_SETOWN, world.sibling)
    return True


@attack(KILLED, WORKS)
def ptrace(world: World) -> bool:
    return syscall("ptrace", 0, 0, 0, 0) == 0  # PTRACE_TRACEME


@attack(KILLED, WORKS)
def process_vm_readv(world: World) -> bool:
    here, there = ctypes.create_string_buffer(8), ctypes.create_string_buffer(b"hunter2")
    vectors = [struct.pack("=QQ", ctypes.addressof(b), 8) for b in (here, there)]
    return syscall("process_vm_readv", os.getpid(), vectors[0], 1, vectors[1], 1, 0) == 8


@attack(KILLED, WORKS)
def change_the_scheduler(world: World) -> bool:
    return syscall("sched_setscheduler", 0, 3, struct.pack("=i", 0)) == 0


# The network


@attack(KILLED, WORKS)
def socket_inet(world: World) -> bool:
    return socket.socket(socket.AF_INET).fileno() > 0


@attack(KILLED, WORKS)
def socket_inet6_datagram(world: World) -> bool:
    return socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).fileno() > 0


@attack(KILLED, WORKS)
def socket_netlink(world: World) -> bool:
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).fileno() > 0


@attack(EACCES, WORKS)
def socket_unix(world: World) -> bool:
    return socket.socket(socket.AF_UNIX).fileno() > 0


@attack(KILLED, WORKS)
def socket_unix_datagram(world: World) -> bool:
    return socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).fileno() > 0


@attack(KILLED, WORKS)
def connect_unix(world: World) -> bool:
    address = struct.pack("=H", socket.AF_UNIX) + os.fsencode(world.listener) + b"\0"
    return syscall("connect", world.unix, address, len(address)) == 0


@attack(KILLED, WORKS)
def connect_inet(world: World) -> bool:
    address = struct.pack("=H", socket.AF_INET) + struct.pack("!H4s8x", world.port, b"\x7f\0\0\1")
    return syscall("connect", world.inet, address, len(address)) == 0


@attack(KILLED, WORKS)
def bind_a_port(world: World) -> bool:
    address = struct.pack("=H", socket.AF_INET) + struct.pack("!H4s8x", 0, b"\x7f\0\0\1")
    return syscall("bind", world.inet, address, len(address)) == 0


@attack(KILLED, WORKS)
def send_to_an_address(world: World) -> bool:
    """sendto is allowed, but without an address."""
    address = struct.pack("=H", socket.AF_INET) + struct.pack("!H4s8x", world.port, b"\x7f\0\0\1")
    with contextlib.suppress(BrokenPipeError):  # TCP: not connected, and told so only after the filter
        syscall("sendto", world.inet, b"x", 1, socket.MSG_NOSIGNAL, address, len(address))
    return True


@attack(KILLED, WORKS)
def pass_a_descriptor(world: World) -> bool:
    end = socket.socket(fileno=os.dup(world.unix))
    with contextlib.suppress(OSError):  # it is not connected; the call itself is the point
        socket.send_fds(end, [b"x"], [2])
    return True
