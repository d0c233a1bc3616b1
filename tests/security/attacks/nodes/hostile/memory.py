"""The arena: what is mapped read-only, what is somebody else's, what has no descriptor any more. And calls made
from machine code, by other tables, or from where no library is.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
import struct
from typing import Any

from .registry import CHECKS, FILTER, ISOLATION, LANDLOCK, MAPPING, SEALS, attack
from .tools import PAGE, libc, linger, machine_code, module, os, syscall, touch

_PUNCH = 0x02 | 0x01  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE


def arena_of_supervisor(world: Any) -> int:
    """The arena's memory file, opened anew where the supervisor has it open."""
    return os.open(f"/proc/{world.pids['supervisor']}/fd/{world.arena_fd}", os.O_RDWR)


# Inputs and others' outputs


@attack("arena", MAPPING)
def write_to_an_input(world: Any) -> None:
    """`tensor.add_(1)` on an input."""
    world.tensor.add_(1)


@attack("arena", MAPPING)
def write_to_an_input_by_address(world: Any) -> None:
    """`memset` on an input, by ctypes."""
    ctypes.memset(world.tensor.data_ptr(), 0xFF, 8)


@attack("arena", MAPPING)
def write_to_a_result_of_a_sibling(world: Any) -> None:
    """Into another worker's lease, by address."""
    ctypes.memset(world.base + world.sibling_result, 0xFF, 8)


@attack("arena", MAPPING)
def make_an_input_writable(world: Any) -> None:
    """`mprotect` of an input to read-write, then write."""
    address = world.tensor.data_ptr()
    syscall("mprotect", address & ~(PAGE - 1), PAGE, 3)
    ctypes.memset(address, 0xFF, 8)


@attack("arena", MAPPING)
def make_an_input_writable_and_executable(world: Any) -> None:
    """The same to read-write-execute, which machine code generators may ask for."""
    address = world.tensor.data_ptr()
    syscall("mprotect", address & ~(PAGE - 1), PAGE, 7)
    ctypes.memset(address, 0xFF, 8)


@attack("arena", MAPPING)
def punch_an_input(world: Any) -> None:
    """MADV_REMOVE: a hole in shared memory, without a descriptor of it."""
    syscall("madvise", world.tensor.data_ptr() & ~(PAGE - 1), PAGE, 9)


@attack("arena", MAPPING)
def write_by_proc_self_mem(world: Any) -> None:
    """/proc/self/mem, which overrules the protection of private pages; of shared ones, if they could be writable."""
    address = world.tensor.data_ptr()
    try:
        descriptor = os.open("/proc/self/mem", os.O_RDWR)
        os.pwrite(descriptor, b"\xff" * 8, address)
    except PermissionError:
        ctypes.memset(address, 0xFF, 8)


@attack("claim", FILTER, LANDLOCK, also_off=(ISOLATION,))
def change_code_by_proc_self_mem(world: Any) -> bool:
    """/proc/self/mem: into code of the C library, which is mapped read-only."""
    descriptor = os.open("/proc/self/mem", os.O_RDWR)
    target = ctypes.cast(libc.abort, ctypes.c_void_p).value or 0
    return os.pwrite(descriptor, ctypes.string_at(target, 1), target) == 1


@attack("arena", MAPPING)
def write_by_vector(world: Any) -> None:
    """`process_vm_writev` into itself, or else a plain store."""
    ctypes.memmove(world.tensor.data_ptr(), b"\xff" * 8, 8)


@attack("arena", MAPPING)
def read_a_file_into_an_input(world: Any) -> None:
    """`read` with an input as its buffer: the kernel does the writing."""
    source = os.open(f"{world.models}/weights.bin", os.O_RDONLY)
    syscall("read", source, world.tensor.data_ptr() + 8, 8)


@attack("claim", FILTER)
def memory_policy(world: Any) -> bool:
    """`set_mempolicy`: where the kernel finds memory for it."""
    return syscall("set_mempolicy", 0, 0, 0) == 0


# New mappings


@attack("mappings", FILTER)
def grow_the_lease(world: Any) -> None:
    """`mremap`: the lease, grown over its neighbour's."""
    copy = syscall("mremap", world.lease_address, 0, PAGE, 1)  # so that the lease itself stays where it is
    syscall("mremap", copy, PAGE, world.lease_size + (2 << 20), 1)


@attack("mappings", FILTER)
def duplicate_the_lease(world: Any) -> None:
    """`mremap` of size 0: a second mapping of shared memory."""
    syscall("mremap", world.lease_address, 0, PAGE, 1)


@attack("mappings", FILTER)
def rearrange_the_arena(world: Any) -> None:
    """`remap_file_pages`: other pages of the file in the lease's place."""
    syscall("remap_file_pages", world.lease_address, PAGE, 0, 0, 0)


@attack("mappings", FILTER)
def new_shared_memory(world: Any) -> None:
    """`mmap`: shared memory of no file."""
    syscall("mmap", 0, PAGE, 3, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS, -1, 0)


@attack("mappings", FILTER)
def shared_mapping_of_a_model(world: Any) -> None:
    """`mmap`: a model's file, shared."""
    file = os.open(f"{world.models}/weights.bin", os.O_RDONLY)
    syscall("mmap", 0, PAGE, 1, mmap.MAP_SHARED, file, 0)


@attack("mappings", FILTER)
def validated_shared_mapping(world: Any) -> None:
    """The same with MAP_SHARED_VALIDATE: another type, with one bit more."""
    file = os.open(f"{world.models}/weights.bin", os.O_RDONLY)
    syscall("mmap", 0, PAGE, 1, 3, file, 0)


@attack("mappings", FILTER)
def code_from_a_model(world: Any) -> None:
    """`mmap`: a model's file, executable."""
    file = os.open(f"{world.models}/weights.bin", os.O_RDONLY)
    syscall("mmap", 0, PAGE, 5, mmap.MAP_PRIVATE, file, 0)


@attack("mappings", FILTER)
def code_from_a_model_in_two_steps(world: Any) -> None:
    """The same, mapped first and made executable after: PROT_READ|PROT_EXEC."""
    file = os.open(f"{world.models}/weights.bin", os.O_RDONLY)
    address = syscall("mmap", 0, PAGE, 1, mmap.MAP_PRIVATE, file, 0)
    syscall("mprotect", address, PAGE, 5)


@attack("mappings", FILTER)
def load_a_library(world: Any) -> None:
    """`dlopen` of a library that was not loaded before lockdown."""
    for folder in ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64"):
        if os.path.exists(f"{folder}/libBrokenLocale.so.1"):  # which nothing of ours loads
            ctypes.CDLL(f"{folder}/libBrokenLocale.so.1")


# The arena's file


@attack("arena", LANDLOCK, FILTER, also_off=(ISOLATION,))
def open_the_arena_again(world: Any) -> None:
    """The arena by the supervisor's /proc/PID/fd, read-write: then a `pwrite` into an input."""
    os.pwrite(arena_of_supervisor(world), b"\xff" * 8, world.input_offset)


@attack("arena", LANDLOCK, FILTER, also_off=(ISOLATION,))
def punch_the_arena(world: Any) -> None:
    """`fallocate` on it: a hole where the client's tensors are."""
    page = world.input_offset & ~(PAGE - 1)
    syscall("fallocate", arena_of_supervisor(world), _PUNCH, page, PAGE)


@attack("arena", LANDLOCK, FILTER, SEALS, also_off=(ISOLATION,))
def shrink_the_arena(world: Any) -> None:
    """`ftruncate` on it: the supervisor's next access would be a bus error. By one page, the last."""
    os.ftruncate(arena_of_supervisor(world), world.arena_size - PAGE)


@attack("arena", LANDLOCK, FILTER, SEALS, also_off=(ISOLATION,))
def grow_the_arena(world: Any) -> None:
    """`ftruncate` on it, upward: memory that nobody counts."""
    os.ftruncate(arena_of_supervisor(world), world.arena_size + PAGE)


@attack("claim", ISOLATION)
def find_a_descriptor_of_the_arena(world: Any) -> bool:
    """A descriptor of the arena, or of anything else that was open when it was forked."""
    kinds = [os.fstat(number).st_mode & 0o170000 for number in range(3, 64) if is_open(number)]
    # The arena is a regular file. Of sockets it has its own, and may have the zygote's channel to the supervisor.
    return 0o100000 in kinds or kinds.count(0o140000) > 1


def is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


@attack(
    "fabric",
    CHECKS,
)
def scribble_on_the_header(world: Any) -> None:
    """Another magic number at the beginning of the arena, then end the process, so that another has to start."""
    ctypes.memset(world.slots, 0xA5, 8)
    os._exit(1)


@attack(
    "sibling",
    CHECKS,
)
def stop_the_heartbeat_of_a_sibling(world: Any) -> None:
    """Overwrite a sibling's heartbeat with an old one, again and again, until the supervisor takes it for dead."""
    word = ctypes.c_uint64.from_address(world.slots + 64 + 64 * world.sibling_slot + 16)
    time = module("time")
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        for _ in range(10_000):
            word.value = 1


# Calls that go another way


@attack("files", FILTER, LANDLOCK)
def null_pointer_then_exec(world: Any) -> None:
    """A handler for SIGSEGV in C's hands, a NULL dereference, and exec from where it returns to."""

    def handle(number: int) -> None:
        try:
            os.execv("/bin/sh", touch(world))
        finally:
            os._exit(1)

    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(handle)
    libc.signal(11, handler)
    ctypes.string_at(0)


if platform.machine() == "x86_64":

    @attack("processes", FILTER)
    def fork_in_machine_code(world: Any) -> None:
        """`mov eax, 57; syscall; ret` from memory of its own."""
        if machine_code(b"\xb8\x39\0\0\0\x0f\x05\xc3")() == 0:
            linger()

    @attack("processes", FILTER)
    def fork_in_borrowed_code(world: Any) -> None:
        """The `syscall` instruction of the C library, jumped to with registers of its own."""
        start = ctypes.cast(libc.syscall, ctypes.c_void_p).value or 0
        at = start + ctypes.string_at(start, 64).index(b"\x0f\x05")
        # push a return address; eax = 57; jump to the instruction, after which the library returns
        code = b"\xb8\x39\0\0\0\x48\xb9" + struct.pack("=Q", at) + b"\xff\xe1"
        if machine_code(code)() == 0:
            linger()

    @attack("processes", FILTER)
    def fork_as_i386(world: Any) -> None:
        """`int 0x80`: the 32-bit table, where 2 is fork."""
        if machine_code(b"\x53\xb8\x02\0\0\0\x31\xdb\xcd\x80\x5b\xc3")() == 0:
            linger()

    @attack("claim", FILTER)
    def harmless_call_as_i386(world: Any) -> bool:
        """`int 0x80` with number 20: getpid there, `writev` in the native table."""
        return machine_code(b"\xb8\x14\0\0\0\xcd\x80\xc3")() == os.getpid()

    @attack("processes", FILTER)
    def fork_as_x32(world: Any) -> None:
        """The x32 table, or where the kernel has none, bits above the number."""
        ctypes.set_errno(0)
        if libc.syscall(ctypes.c_long(0x4000_0000 | 57)) == 0:
            linger()
        if ctypes.get_errno() == 38 and libc.syscall(ctypes.c_long(1 << 32 | 57)) == 0:
            linger()

    @attack("claim", FILTER)
    def other_thread_pointer(world: Any) -> bool:
        """`arch_prctl`: whether CPUID may be asked."""
        return syscall("arch_prctl", 0x1011, 0) >= 0
