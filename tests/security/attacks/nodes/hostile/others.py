"""Other processes: their memory, their descriptors, their environment, their lives.

Four victims: the supervisor, the zygote, a sibling (another worker of the fabric), and a bystander, a process
of the same user that has nothing to do with any of them.
"""

from __future__ import annotations

import ctypes
import signal
import struct
from collections.abc import Callable
from functools import partial
from typing import Any

from .registry import ENVIRONMENT, FILTER, ISOLATION, LANDLOCK, attack
from .tools import module, os, syscall, vector

_VICTIMS = ("supervisor", "zygote", "sibling", "bystander")
_ENVIRONMENT_READ = 4096  # bytes


def each(victims: tuple[str, ...], effect: str, *stopped_by: str, **options: Any) -> Callable[[Any], Any]:
    """Register an attack once for each victim. ``effect`` has ``*`` for the victim's name."""

    def register(function: Callable[[Any, str], Any]) -> Callable[[Any, str], Any]:
        for victim in victims:
            made = partial(function, victim=victim)
            made.__name__ = f"{function.__name__}_{victim}"  # type: ignore[attr-defined]
            made.__module__ = function.__module__
            made.__doc__ = (function.__doc__ or "").replace("VICTIM", f"the {victim}")
            attack(effect.replace("*", victim), *stopped_by, **options)(made)
        return function

    return register


# Signals


@each(_VICTIMS, "*", FILTER, LANDLOCK, abi=6)
def kill(world: Any, victim: str) -> None:
    """A signal to VICTIM, by `kill`."""
    os.kill(world.pids[victim], signal.SIGUSR1 if victim == "supervisor" else signal.SIGKILL)


@each(("supervisor", "bystander"), "*", FILTER, LANDLOCK, abi=6)
def tgkill(world: Any, victim: str) -> None:
    """A signal to a thread of VICTIM, by `tgkill`."""
    pid = world.pids[victim]
    syscall("tgkill", pid, pid, signal.SIGUSR1)


@each(("bystander",), "*", FILTER, LANDLOCK, abi=6)
def tkill(world: Any, victim: str) -> None:
    """A signal to a thread of VICTIM, by `tkill`."""
    syscall("tkill", world.pids[victim], signal.SIGUSR1)


@each(("supervisor", "sibling"), "*", FILTER, LANDLOCK, abi=6)
def queue_a_signal_to(world: Any, victim: str) -> None:
    """A signal with data to VICTIM, by `rt_sigqueueinfo`."""
    number = signal.SIGUSR1 if victim == "supervisor" else signal.SIGTERM
    information = struct.pack("=iii", number, 0, -1) + bytes(116)
    syscall("rt_sigqueueinfo", world.pids[victim], number, information)


@each(("supervisor", "zygote", "bystander"), "*", FILTER, LANDLOCK, abi=6)
def signal_by_pidfd(world: Any, victim: str) -> None:
    """A signal to VICTIM by a descriptor of it: `pidfd_open`, `pidfd_send_signal`."""
    descriptor = os.pidfd_open(world.pids[victim])
    signal.pidfd_send_signal(descriptor, signal.SIGUSR1 if victim == "supervisor" else signal.SIGKILL)


@each(("supervisor", "bystander"), "*", FILTER, LANDLOCK, abi=6)
def signal_by_ownership(world: Any, victim: str) -> None:
    """SIGIO to VICTIM: it is made the owner of the log."""
    fcntl = module("fcntl")
    log = 2
    fcntl.fcntl(log, fcntl.F_SETOWN, world.pids[victim])
    fcntl.fcntl(log, 10, signal.SIGUSR1)  # F_SETSIG
    fcntl.fcntl(log, fcntl.F_SETFL, fcntl.fcntl(log, fcntl.F_GETFL) | os.O_ASYNC)
    for _ in range(3):
        os.write(log, b"read this\n")  # and be told that there is room again
        module("time").sleep(0.02)


@attack("sibling", FILTER, LANDLOCK, abi=6)
def kill_everybody(world: Any) -> None:
    """The first signal of a worker to itself and everybody after it; bounded to its fabric's zygote and sibling."""
    for victim in ("zygote", "sibling"):
        os.kill(world.pids[victim], signal.SIGKILL)


# Memory


@each(("bystander", "zygote", "sibling"), "*", FILTER, LANDLOCK, also_off=(ISOLATION,))
def trace(world: Any, victim: str) -> None:
    """`ptrace`: PTRACE_SEIZE of VICTIM."""
    syscall("ptrace", 0x4206, world.pids[victim], 0, 0)


@attack("state", FILTER)
def be_traced(world: Any) -> None:
    """`ptrace`: PTRACE_TRACEME, which would make the zygote stop at each of its signals."""
    syscall("ptrace", 0, 0, 0, 0)


@each(("supervisor", "bystander"), "leak", FILTER, LANDLOCK, also_off=(ISOLATION,))
def read_memory_of(world: Any, victim: str) -> bytes:
    """The memory of VICTIM, by `process_vm_readv`."""
    return read_vm(world.pids[victim], world.secrets[victim], 64)


@each(_VICTIMS, "*", FILTER, LANDLOCK, also_off=(ISOLATION,))
def write_memory_of(world: Any, victim: str) -> None:
    """Into the memory of VICTIM, by `process_vm_writev`."""
    data = ctypes.create_string_buffer(another(world))
    here, there = vector(ctypes.addressof(data), 1), vector(world.environments[victim], 1)
    syscall("process_vm_writev", world.pids[victim], here, 1, there, 1, 0)


@each(("supervisor", "bystander"), "leak", FILTER, LANDLOCK, also_off=(ISOLATION,))
def read_memory_file_of(world: Any, victim: str) -> bytes:
    """The memory of VICTIM, by /proc/PID/mem. (The filter would let it read, if it were open for reading.)"""
    descriptor = os.open(f"/proc/{world.pids[victim]}/mem", os.O_RDWR)
    return os.pread(descriptor, 64, world.secrets[victim])


@each(_VICTIMS, "*", FILTER, LANDLOCK, also_off=(ISOLATION,))
def write_memory_file_of(world: Any, victim: str) -> None:
    """Into the memory of VICTIM, by /proc/PID/mem."""
    descriptor = os.open(f"/proc/{world.pids[victim]}/mem", os.O_RDWR)
    os.pwrite(descriptor, another(world), world.environments[victim])


@each(("bystander",), "leak", LANDLOCK, also_off=(ISOLATION,))
def read_environment_of(world: Any, victim: str) -> bytes:
    """The environment of VICTIM, by /proc/PID/environ."""
    with open(f"/proc/{world.pids[victim]}/environ", "rb") as file:
        return file.read(_ENVIRONMENT_READ)


@attack("leak", LANDLOCK, also_off=(ISOLATION,))
def read_memory_file_readonly(world: Any) -> bytes:
    """The memory of the supervisor, read-only, by /proc/PID/mem."""
    descriptor = os.open(f"/proc/{world.pids['supervisor']}/mem", os.O_RDONLY)
    return os.pread(descriptor, 64, world.secrets["supervisor"])


@attack("leak", ENVIRONMENT)
def inherit_the_environment(world: Any) -> str:
    """A secret in the supervisor's environment, looked for in its own."""
    return repr(dict(os.environ))


# Descriptors


@attack("leak", LANDLOCK, also_off=(ISOLATION,))
def reopen_a_descriptor_of_supervisor(world: Any) -> bytes:
    """A file that the supervisor has open, by /proc/PID/fd."""
    descriptor = os.open(f"/proc/{world.pids['supervisor']}/fd/{world.secret_fd}", os.O_RDONLY)
    return os.read(descriptor, 64)


@attack("leak", FILTER, LANDLOCK, also_off=(ISOLATION,))
def steal_a_descriptor_of_supervisor(world: Any) -> bytes:
    """A file that the supervisor has open, by `pidfd_getfd`."""
    process = os.pidfd_open(world.pids["supervisor"])
    return os.pread(syscall("pidfd_getfd", process, world.secret_fd, 0), 64, 0)


@attack("claim", FILTER)
def watch_a_process(world: Any) -> bool:
    """`pidfd_open` of the bystander: to be told when it ends."""
    return os.pidfd_open(world.pids["bystander"]) > 0


@attack("claim", FILTER, LANDLOCK, also_off=(ISOLATION,))
def compare_descriptors(world: Any) -> bool:
    """`kcmp`: whether the supervisor's descriptor and one of the bystander's are the same file."""
    supervisor, bystander = world.pids["supervisor"], world.pids["bystander"]
    return syscall("kcmp", supervisor, bystander, 0, 0, 0) >= 0


# What they run under


@attack("bystander", FILTER, also_off=(ISOLATION,))
def limit_a_bystander(world: Any) -> None:
    """`prlimit64` on the bystander."""
    syscall("prlimit64", world.pids["bystander"], 7, struct.pack("=QQ", 3, 3), 0)


@attack("bystander", FILTER, also_off=(ISOLATION,))
def slow_a_bystander(world: Any) -> None:
    """`setpriority` on the bystander."""
    os.setpriority(os.PRIO_PROCESS, world.pids["bystander"], 19)


@attack("sibling", FILTER)
def deschedule_a_sibling(world: Any) -> None:
    """`sched_setscheduler` on the sibling: SCHED_IDLE, and a late heartbeat."""
    os.sched_setscheduler(world.pids["sibling"], os.SCHED_IDLE, os.sched_param(0))


@attack("bystander", FILTER, also_off=(ISOLATION,))
def pin_a_bystander(world: Any) -> None:
    """`sched_setaffinity` on the bystander."""
    os.sched_setaffinity(world.pids["bystander"], {min(os.sched_getaffinity(0))})


@attack("claim", FILTER, also_off=(ISOLATION,))
def advise_on_memory_of_a_bystander(world: Any) -> bool:
    """`process_madvise` on the bystander's memory."""
    process = os.pidfd_open(world.pids["bystander"])
    page = world.secrets["bystander"] & ~4095
    return syscall("process_madvise", process, vector(page, 4096), 1, 20, 0) >= 0


def another(world: Any) -> bytes:
    """A byte that the attack before this one did not write."""
    return bytes([128 + world.node.context.job_id % 128])


def read_vm(pid: int, address: int, size: int) -> bytes:
    data = ctypes.create_string_buffer(size)
    here, there = vector(ctypes.addressof(data), size), vector(address, size)
    got = syscall("process_vm_readv", pid, here, 1, there, 1, 0)
    return data.raw[:got]
