"""More time, memory or descriptors than a node was given."""

from __future__ import annotations

import ctypes
import mmap
import re
import threading
from typing import Any

from .registry import DEADLINE, FILTER, ISOLATION, LANDLOCK, MEMORY_LIMIT, REST, attack
from .tools import PAGE, libc, machine_code, module, os, syscall

_THREADS = 500  # bounded: without an end, only the limit of processes would stop it, and that does not bind root
_GIB = 1 << 30


@attack("endless", DEADLINE)
def spin(world: Any) -> None:
    """An endless loop in Python."""
    while True:
        pass


@attack("endless", DEADLINE)
def spin_in_native_code(world: Any) -> None:
    """A match that takes for ever, in C, and with Python's lock held."""
    re.match(r"(a*)*b", "a" * 64)


@attack("endless", DEADLINE)
def sleep(world: Any) -> None:
    """Sleep for ever, with every signal blocked."""
    signal = module("signal")
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    module("time").sleep(3600)


@attack("endless", DEADLINE)
def ignore_cancellation(world: Any) -> None:
    """Catch whatever the context raises to end the job, and go on."""
    while True:
        try:
            world.node.context.progress(0, 1)
        except BaseException:
            pass


@attack("endless", DEADLINE)
def thread_bomb(world: Any) -> None:
    """As many threads as it can get, none of which ends; bounded to 500."""
    threading.stack_size(64 << 10)
    for _ in range(_THREADS):
        threading.Thread(target=threading.Event().wait, daemon=True).start()
    threading.Event().wait()


@attack("leftovers", REST)
def leave_a_thread_behind(world: Any) -> bool:
    """Return at once, and go on computing in a thread."""

    def spin() -> None:
        while True:
            sum(range(1000))

    threading.Thread(target=spin, daemon=True).start()
    return True


@attack("claim", MEMORY_LIMIT)
def more_memory_than_it_may(world: Any) -> bool:
    """Eight times the memory limit at once. It is asked for, not touched: it would be no less refused."""
    return syscall("mmap", 0, 4 * _GIB, 3, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000, -1, 0) > 0


@attack("claim", MEMORY_LIMIT)
def more_memory_in_small_pieces(world: Any) -> bool:
    """The same, 16 MiB at a time, of which none is touched."""
    libc.malloc.restype = ctypes.c_void_p
    return all(libc.malloc(ctypes.c_size_t(16 << 20)) for _ in range(256))


@attack("claim", MEMORY_LIMIT)
def more_memory_from_torch(world: Any) -> bool:
    """A tensor of four times the memory limit."""
    torch = module("torch")
    return torch.empty(2 * _GIB, dtype=torch.uint8).numel() > 0


@attack("claim", MEMORY_LIMIT)
def decompression_bomb(world: Any) -> bool:
    """A few kilobytes that unpack to more than the memory limit; bounded to 640 MiB."""
    zlib = module("zlib")
    packer = zlib.compressobj(9, wbits=-15)
    block = packer.compress(bytes(16 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)  # can be repeated at will
    return len(zlib.decompressobj(-15).decompress(block * 40)) == 640 << 20


@attack("state", FILTER)
def lock_memory(world: Any) -> None:
    """`mlock`: memory that the system can't page out."""
    address = syscall("mmap", 0, 64 * PAGE, 3, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    syscall("mlock", address, 64 * PAGE)


@attack("many descriptors", ISOLATION)
def descriptors(world: Any) -> None:
    """1,000 open files."""
    for _ in range(1000):
        os.open("/dev/null", os.O_RDONLY)


@attack("many descriptors", ISOLATION)
def descriptors_by_duplication(world: Any) -> None:
    """1,000 duplicates of one, by fcntl."""
    fcntl = module("fcntl")
    for _ in range(1000):
        fcntl.fcntl(2, fcntl.F_DUPFD_CLOEXEC, 3)


@attack("files", FILTER, LANDLOCK, ISOLATION)
def fill_the_disk(world: Any) -> None:
    """Write to a file in a folder that may be read; bounded to 1 MiB."""
    with open(f"{world.models}/weights.bin", "r+b") as file:
        file.write(bytes(1 << 20))


@attack("shared memory", FILTER, LANDLOCK)
def fill_shared_memory(world: Any) -> None:
    """A file in /dev/shm, which is memory; bounded to none."""
    os.open(f"/dev/shm/vw-attack-{world.mark}", os.O_CREAT | os.O_WRONLY, 0o600)


@attack("state", FILTER)
def change_priority(world: Any) -> None:
    """`setpriority`."""
    os.setpriority(os.PRIO_PROCESS, 0, 19)


@attack("state", FILTER, also_off=(ISOLATION,))
def real_time_scheduling(world: Any) -> None:
    """SCHED_FIFO, which nothing else on its CPU can interrupt."""
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))


@attack("state", FILTER)
def choose_the_cpu(world: Any) -> None:
    """`sched_setaffinity`."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


@attack("state", FILTER, LANDLOCK, also_off=(ISOLATION,))
def change_who_dies_first(world: Any) -> None:
    """/proc/self/oom_score_adj: whom the system ends when memory is short. (Upwards, which needs no privilege.)"""
    descriptor = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
    os.write(descriptor, b"17")


@attack("claim", FILTER)
def timers_that_never_end(world: Any) -> bool:
    """`timer_create`: timers that go on sending signals."""
    identifier = bytes(8)
    return syscall("timer_create", 0, 0, identifier) == 0


@attack("endless", DEADLINE)
def spin_in_machine_code(world: Any) -> None:
    """One instruction that jumps to itself, with Python's lock held: no bytecode is ever run again."""
    code = {"x86_64": b"\xeb\xfe", "aarch64": b"\0\0\0\x14"}[module("platform").machine()]
    address = ctypes.cast(machine_code(code), ctypes.c_void_p).value
    ctypes.PYFUNCTYPE(ctypes.c_int)(address)()
