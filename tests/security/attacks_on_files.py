"""Attacks on files, and on memory that is shared with others."""

from __future__ import annotations

import mmap
import os
import struct
from pathlib import Path

from attack_list import (
    AT_FDCWD,
    EACCES,
    PAGE,
    WORKS,
    World,
    attack,
)
from sandbox_child import KILLED, raised, syscall

# Files


@attack(EACCES, WORKS)
def read_a_secret(world: World) -> bool:
    return world.secret.read_text() == "hunter2"


@attack(EACCES, WORKS)
def read_a_secret_through_a_link(world: World) -> bool:
    return (world.readable / "link").read_text() == "hunter2"


@attack(EACCES, WORKS)
def read_a_secret_by_climbing(world: World) -> bool:
    return (world.readable / ".." / "secret").read_text() == "hunter2"


@attack(EACCES, WORKS)
def read_passwd(world: World) -> bool:
    return b"root" in Path("/etc/passwd").read_bytes()


@attack(EACCES, WORKS)
def list_the_home(world: World) -> bool:
    return isinstance(os.listdir(os.path.expanduser("~")), list)


@attack(EACCES, WORKS)
def read_own_environment(world: World) -> bool:
    return bool(Path("/proc/self/environ").read_bytes())


@attack(EACCES, WORKS)
def read_own_memory_as_a_file(world: World) -> bool:
    return os.open("/proc/self/mem", os.O_RDONLY) > 0


@attack(EACCES, WORKS)
def write_own_memory_as_a_file(world: World) -> bool:
    """/proc/self/mem ignores page protections: it would make a read-only input writable."""
    return os.open("/proc/self/mem", os.O_RDWR) > 0


@attack(EACCES, WORKS)
def reopen_a_descriptor_for_writing(world: World) -> bool:
    return os.open(f"/proc/self/fd/{world.shared}", os.O_RDWR) > 0


@attack(EACCES, WORKS)
def open_by_path_only(world: World) -> bool:
    return os.open(world.secret, os.O_PATH) > 0


@attack(EACCES, WORKS)
def write_a_file(world: World) -> bool:
    (world.readable / "new").write_text("x")
    return True


@attack(EACCES, WORKS)
def append_to_a_file(world: World) -> bool:
    with world.data.open("ab") as file:
        file.write(b"x")
    return True


@attack(EACCES, WORKS)
def temporary_file(world: World) -> bool:
    return os.open(world.readable, os.O_TMPFILE | os.O_RDWR) > 0


@attack(KILLED, WORKS)
def open_with_flags_out_of_sight(world: World) -> bool:
    how = struct.pack("=QQQ", os.O_WRONLY, 0, 0)
    return syscall("openat2", AT_FDCWD, os.fsencode(world.data), how, len(how)) > 0


@attack(KILLED, WORKS)
def open_with_a_garbage_flag(world: World) -> bool:
    return syscall("openat", AT_FDCWD, os.fsencode(world.data), 0x4000_0000, 0) > 0


@attack(EACCES, WORKS)
def truncate(world: World) -> bool:
    os.truncate(world.data, 0)
    return True


@attack(EACCES, WORKS)
def unlink(world: World) -> bool:
    world.data.unlink()
    return True


@attack(EACCES, WORKS)
def rename(world: World) -> bool:
    world.data.rename(world.readable / "gone")
    return True


@attack(EACCES, WORKS)
def chmod(world: World) -> bool:
    """Landlock does not cover chmod: the filter alone stops it."""
    world.secret.chmod(0o777)
    return True


@attack(EACCES, WORKS)
def utime(world: World) -> bool:
    os.utime(world.secret, (1, 1))
    return True


@attack(KILLED, WORKS)
def shared_memory_of_others(world: World) -> bool:
    identifier = syscall("shmget", 0, PAGE, 0o1600)
    return syscall("shmctl", identifier, 0, 0) == 0


@attack(KILLED, WORKS)
def memfd_create(world: World) -> bool:
    return os.memfd_create("x") > 0


@attack(EACCES, WORKS)
def posix_shared_memory(world: World) -> bool:
    name = f"/dev/shm/vw-test-{os.getpid()}"
    os.close(os.open(name, os.O_RDWR | os.O_CREAT, 0o600))
    os.unlink(name)
    return True


# Memory


@attack(EACCES, WORKS)
def mmap_shared_file(world: World) -> bool:
    file = os.open(world.data, os.O_RDONLY)
    return mmap.mmap(file, 0, access=mmap.ACCESS_READ)[:1] == b"\0"


@attack(EACCES, WORKS)
def mmap_shared_of_no_file(world: World) -> bool:
    return mmap.mmap(-1, PAGE)[:1] == b"\0"


@attack(EACCES, WORKS)
def mmap_the_arena_again(world: World) -> bool:
    """A descriptor of the arena that were left open would be of no use: no shared mapping can be made."""
    return mmap.mmap(world.shared, 2 * PAGE)[:1] == b"\0"


@attack(EACCES, WORKS)
def mmap_code_from_a_file(world: World) -> bool:
    file = os.open(world.data, os.O_RDONLY)
    return mmap.mmap(file, PAGE, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_EXEC)[:1] == b"\0"


@attack(EACCES, WORKS)
def mprotect_code_in_a_file(world: World) -> bool:
    file = os.open(world.data, os.O_RDONLY)
    address = syscall("mmap", 0, PAGE, mmap.PROT_READ, mmap.MAP_PRIVATE, file, 0)
    return syscall("mprotect", address, PAGE, mmap.PROT_READ | mmap.PROT_EXEC) == 0


@attack(raised("ENOMEM"), WORKS)
def grow_the_lease_over_its_neighbour(world: World) -> bool:
    return syscall("mremap", world.lease, PAGE, 2 * PAGE, 1) > 0


@attack(EACCES, WORKS)
def write_to_a_readonly_input(world: World) -> bool:
    """A writable mapping would need a writable descriptor, and a shared one: neither can be had."""
    reader = os.open(f"/proc/self/fd/{world.shared}", os.O_RDONLY)
    address = syscall("mmap", 0, PAGE, mmap.PROT_READ, mmap.MAP_SHARED, reader, 0)
    return address > 0
