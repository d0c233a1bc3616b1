"""The kernel's larger doors, where most holes have been found. Some calls would harm the machine if they worked:
these are made with arguments that the kernel refuses, and count as a success if it got as far as looking at them.
"""

from __future__ import annotations

import ctypes
import struct
from typing import Any

from .registry import FILTER, ISOLATION, LANDLOCK, attack
from .tools import AT_FDCWD, carried_out, libc, os, syscall

_ALSO = (ISOLATION,)  # needs a capability, too


@attack("descriptors", FILTER)
def io_uring(world: Any) -> None:
    """`io_uring_setup`: other calls, in a queue that no filter sees."""
    syscall("io_uring_setup", 4, bytes(120))


@attack("claim", FILTER)
def io_uring_enter(world: Any) -> bool:
    """`io_uring_enter` of a ring that is not there."""
    return carried_out("io_uring_enter", 0, 1, 0, 0, 0, 0)


@attack("mappings", FILTER)
def old_asynchronous_io(world: Any) -> None:
    """`io_setup`: Linux's first asynchronous I/O."""
    syscall("io_setup", 4, bytes(8))


@attack("descriptors", FILTER)
def userfaultfd(world: Any) -> None:
    """`userfaultfd`, for faults of its own code: a lever in many exploits of the kernel."""
    syscall("userfaultfd", os.O_CLOEXEC | 1)


@attack("descriptors", FILTER, ISOLATION)
def bpf_map(world: Any) -> None:
    """`bpf`: make a map."""
    syscall("bpf", 0, struct.pack("=IIIII", 2, 4, 4, 1, 0) + bytes(100), 72)


@attack("descriptors", FILTER, ISOLATION)
def bpf_program(world: Any) -> None:
    """`bpf`: load a program, `return 0`."""
    code = ctypes.create_string_buffer(struct.pack("=QQ", 0xB7, 0x95), 16)
    licence = ctypes.create_string_buffer(b"GPL")
    attributes = struct.pack("=IIQQIIQII", 1, 2, ctypes.addressof(code), ctypes.addressof(licence), 0, 0, 0, 0, 0)
    syscall("bpf", 5, attributes + bytes(80), 72)


@attack("descriptors", FILTER)
def perf(world: Any) -> None:
    """`perf_event_open` on itself: counters that time what others do with a cache."""
    attributes = struct.pack("=IIQQQQQ", 1, 112, 0, 0, 0, 0, 1 | 1 << 5 | 1 << 6) + bytes(64)
    syscall("perf_event_open", attributes, 0, -1, -1, 0)


@attack("keys", FILTER)
def add_key(world: Any) -> None:
    """`add_key`: a key in the kernel's keyring of this process."""
    syscall("add_key", b"user", f"vw-attack-{world.mark}".encode(), b"x", 1, -2)


@attack("claim", FILTER)
def keyctl(world: Any) -> bool:
    """`keyctl`: find the keyring of the session."""
    return carried_out("keyctl", 0, -3, 0)


@attack("claim", FILTER)
def request_key(world: Any) -> bool:
    """`request_key`, for which the kernel starts a program of its own; here without that."""
    return carried_out("request_key", b"user", b"vw-no-such-key", 0, 0)


@attack("mounts", FILTER, LANDLOCK, also_off=_ALSO)
def mount(world: Any) -> None:
    """`mount` a file system."""
    syscall("mount", b"none", f"{world.outside}/mnt".encode(), b"tmpfs", 0, 0)


@attack("claim", FILTER, also_off=_ALSO)
def new_mount_api(world: Any) -> bool:
    """`fsopen`: the same in the newer way."""
    return syscall("fsopen", b"tmpfs", 1) > 0


@attack("claim", FILTER, also_off=_ALSO)
def clone_a_mount(world: Any) -> bool:
    """`open_tree` with OPEN_TREE_CLONE."""
    return syscall("open_tree", AT_FDCWD, b"/", 1) > 0


@attack("claim", FILTER, also_off=_ALSO)
def unmount(world: Any) -> bool:
    """`umount2` of a folder that is no mount."""
    return carried_out("umount2", f"{world.outside}/mnt".encode(), 2)


@attack("claim", FILTER, LANDLOCK, also_off=_ALSO)
def pivot_root(world: Any) -> bool:
    """`pivot_root`, to folders that can't be one."""
    return carried_out("pivot_root", f"{world.outside}/mnt".encode(), f"{world.outside}/mnt".encode())


@attack("state", FILTER, also_off=_ALSO)
def chroot(world: Any) -> None:
    """`chroot`."""
    syscall("chroot", os.fsencode(world.models))


@attack("state", FILTER, also_off=_ALSO)
def unshare_mounts(world: Any) -> None:
    """`unshare`: a mount namespace."""
    syscall("unshare", 0x0002_0000)


@attack("state", FILTER, also_off=_ALSO)
def unshare_the_network(world: Any) -> None:
    """`unshare`: a network namespace, and with it much of the kernel's network code."""
    syscall("unshare", 0x4000_0000)


@attack("claim", FILTER)
def unshare_the_user(world: Any) -> bool:
    """`unshare`: a user namespace. The kernel itself refuses it to a process with threads, and says EINVAL."""
    return carried_out("unshare", 0x1000_0000)


@attack("claim", FILTER)
def join_a_namespace(world: Any) -> bool:
    """`setns` with a descriptor that is no namespace."""
    return carried_out("setns", 2, 0)


@attack("claim", FILTER, also_off=_ALSO)
def load_a_module(world: Any) -> bool:
    """`init_module`, of nothing."""
    return carried_out("init_module", b"", 0, b"")


@attack("claim", FILTER, also_off=_ALSO)
def unload_a_module(world: Any) -> bool:
    """`delete_module`, of one that isn't there."""
    return carried_out("delete_module", b"vw_no_such_module", 0)


@attack("claim", FILTER, also_off=_ALSO)
def replace_the_kernel(world: Any) -> bool:
    """`kexec_load`, with flags that don't exist."""
    return carried_out("kexec_load", 0, 0, 0, 0xFFF0)


@attack("claim", FILTER, also_off=_ALSO)
def reboot(world: Any) -> bool:
    """`reboot`, without its magic numbers."""
    return carried_out("reboot", 0, 0, 0, 0)


@attack("claim", FILTER, also_off=_ALSO)
def set_the_clock(world: Any) -> bool:
    """`clock_settime`, of a clock that can't be set."""
    return carried_out("clock_settime", 1, struct.pack("=QQ", 0, 0))


@attack("claim", FILTER, also_off=_ALSO)
def swap(world: Any) -> bool:
    """`swapon`, of a file that isn't there."""
    return carried_out("swapon", b"/nowhere/at/all", 0)


@attack("claim", FILTER, also_off=_ALSO)
def accounting(world: Any) -> bool:
    """`acct`, into a file that isn't there."""
    return carried_out("acct", b"/nowhere/at/all")


@attack("claim", FILTER, also_off=_ALSO)
def kernel_log(world: Any) -> bool:
    """`syslog`: the size of the kernel's log."""
    return syscall("syslog", 10, 0, 0) > 0


@attack("descriptors", FILTER, also_off=_ALSO)
def watch_all_files(world: Any) -> None:
    """`fanotify_init`: be told of, and asked about, everybody's files."""
    syscall("fanotify_init", 0, os.O_RDONLY)


@attack("descriptors", FILTER)
def watch_files(world: Any) -> None:
    """`inotify_init1`: be told of changes to files, which Landlock does not cover."""
    syscall("inotify_init1", 0)


@attack("descriptors", FILTER)
def memory_file(world: Any) -> None:
    """`memfd_create`: a file that Landlock does not know, to be mapped or executed."""
    os.memfd_create("x")


@attack("descriptors", FILTER)
def secret_memory(world: Any) -> None:
    """`memfd_secret`: memory that not even the kernel can read, to hide in."""
    syscall("memfd_secret", 0)


@attack("claim", FILTER)
def name_to_handle(world: Any) -> bool:
    """`name_to_handle_at`: a file's handle, to be opened past every folder above it."""
    handle = ctypes.create_string_buffer(struct.pack("=Ii", 128, 0) + bytes(128))
    mount = ctypes.create_string_buffer(4)
    return carried_out("name_to_handle_at", AT_FDCWD, b"/", handle, mount, 0)


@attack("claim", FILTER, also_off=_ALSO)
def open_by_handle(world: Any) -> bool:
    """`open_by_handle_at`, with a handle of nothing: the way out of many a container."""
    return carried_out("open_by_handle_at", AT_FDCWD, bytes(24), 0)


@attack("sysv", FILTER)
def shared_memory_of_old(world: Any) -> None:
    """`shmget`: shared memory that outlives its process, and that Landlock does not cover."""
    syscall("shmget", 0, 4096, 0o1600)


@attack("sysv", FILTER)
def semaphores_of_old(world: Any) -> None:
    """`semget`."""
    syscall("semget", 0, 1, 0o1600)


@attack("sysv", FILTER)
def messages_of_old(world: Any) -> None:
    """`msgget`: a queue to talk to others by."""
    syscall("msgget", 0, 0o1600)


@attack("claim", FILTER)
def message_queue(world: Any) -> bool:
    """`mq_open`, of a queue that isn't there."""
    return carried_out("mq_open", b"vw-no-such-queue", os.O_RDONLY, 0, 0)


@attack("claim", FILTER)
def segments(world: Any) -> bool:
    """`modify_ldt`: read the table of segments, code from another age."""
    return syscall("modify_ldt", 0, bytes(16), 16) >= 0


@attack("claim", FILTER, also_off=_ALSO)
def ports(world: Any) -> bool:
    """`ioperm`: the machine's I/O ports."""
    return carried_out("ioperm", 0, 1, 0)


@attack("claim", FILTER)
def quotas(world: Any) -> bool:
    """`quotactl`, of a device that isn't there."""
    return carried_out("quotactl", 0x8000_0100, b"/nowhere", 0, 0)


@attack("claim", FILTER)
def memory_keys(world: Any) -> bool:
    """`pkey_alloc`: protection keys, which a fault handler of its own could play with."""
    return carried_out("pkey_alloc", 0, 0)


@attack("claim", FILTER)
def move_pages(world: Any) -> bool:
    """`move_pages`: where in the machine's memory a page lies."""
    status, pages = bytes(4), struct.pack("=Q", ctypes.addressof(libc.syscall) & ~4095)
    return carried_out("move_pages", 0, 1, pages, 0, status, 0)


@attack("claim", FILTER)
def a_call_of_the_future(world: Any) -> bool:
    """Number 1023, which no kernel has yet: a denied call, and no error that says which are known."""
    ctypes.set_errno(0)
    libc.syscall(ctypes.c_long(1023))
    return ctypes.get_errno() == 38


@attack("claim", FILTER)
def a_negative_call(world: Any) -> bool:
    """Number -1, with which tracers cancel calls."""
    ctypes.set_errno(0)
    libc.syscall(ctypes.c_long(-1))
    return ctypes.get_errno() == 38
