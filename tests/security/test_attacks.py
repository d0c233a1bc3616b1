"""What hostile code tries after lockdown, each in a process of its own, each judged by its effect.

Every attack also runs with the sandbox off, where that does no harm, to show that it would have worked:
otherwise a test would pass for an attack that is merely broken. ``docs/sandbox.md`` says which layer stops
what.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import platform
import pty
import resource
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from sandbox_child import KILLED, Outcome, libc, raised, run, supported, syscall

pytestmark = pytest.mark.skipif(not supported(), reason="this machine lacks seccomp or Landlock")
x86_64 = platform.machine() == "x86_64"

AT_FDCWD = -100
PAGE = mmap.PAGESIZE


class World(NamedTuple):
    """What there is to attack: made before the child forks, and looked at after it ended."""

    readable: Path  # below it, the worker may read
    secret: Path  # it may not read this
    data: Path  # a readable file of two pages
    sibling: int  # another process of the same user
    listener: str  # path of a listening Unix socket
    unix: int  # an unconnected Unix socket that the child has already
    inet: int  # the same of the internet
    port: int  # a listening TCP port on this host
    terminal: int  # a terminal that the child has a descriptor of
    shared: int  # a memory file of two pages, of which …
    lease: int  # … the first is mapped read-write at this address


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    readable = tmp_path / "models"
    readable.mkdir()
    data = readable / "data.bin"
    data.write_bytes(bytes(2 * PAGE))
    secret = tmp_path / "secret"
    secret.write_text("hunter2")
    (readable / "link").symlink_to(secret)
    with contextlib.ExitStack() as stack:
        sibling = os.fork()
        if sibling == 0:
            signal.pause()
            os._exit(0)
        stack.callback(os.waitpid, sibling, 0)
        stack.callback(os.kill, sibling, signal.SIGKILL)
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        unix = stack.enter_context(socket.socket(socket.AF_UNIX))
        tcp = stack.enter_context(socket.socket())
        tcp.bind(("127.0.0.1", 0))
        tcp.listen()
        inet = stack.enter_context(socket.socket())
        master, terminal = pty.openpty()
        stack.callback(os.close, master)
        stack.callback(os.close, terminal)
        shared = os.memfd_create("arena")
        stack.callback(os.close, shared)
        os.ftruncate(shared, 2 * PAGE)
        libc.mmap.restype = ctypes.c_void_p
        lease = libc.mmap(None, PAGE, 3, mmap.MAP_SHARED, shared, ctypes.c_long(0))
        stack.callback(libc.munmap, ctypes.c_void_p(lease), PAGE)
        yield World(
            readable, secret, data, sibling, str(tmp_path / "s"), unix.fileno(), inet.fileno(),
            tcp.getsockname()[1], terminal, shared, lease,
        )  # fmt: skip


Attack = Callable[[World], Any]
ATTACKS: dict[str, tuple[Attack, Outcome, Outcome | None]] = {}


def attack(expected: Outcome, control: Outcome | None = None) -> Callable[[Attack], Attack]:
    """Register one. ``control``: how it ends without a sandbox; None where nobody should try."""

    def register(function: Attack) -> Attack:
        ATTACKS[function.__name__] = (function, expected, control)
        return function

    return register


WORKS = Outcome("returned", True)
REPLACED = Outcome("exited", 0)  # the process became another program
EACCES, ENOTTY = raised("EACCES"), raised("ENOTTY")
REFUSED_BY_THE_MACHINE = ("EPERM", "ENOSYS", "EIO", "SIGSEGV")  # EIO: no TIOCSTI. SIGSEGV: no 32-bit calls


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


@attack(raised("ENOSYS"), WORKS)
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


# The kernel's larger doors


def reaches_the_kernel(name: str, *args: int | bytes) -> bool:
    """True if the call was carried out, or refused by the call itself rather than by a filter."""
    try:
        syscall(name, *args)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.ENOSYS):
            raise
    return True


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


@attack(KILLED, WORKS)
def raise_a_limit(world: World) -> bool:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, hard), hard))
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
    """KILL_PROCESS asks no handler."""
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


@pytest.mark.parametrize("name", ATTACKS)
def test_stopped(world: World, name: str) -> None:
    function, expected, _ = ATTACKS[name]
    before = snapshot(world)
    keep = (world.unix, world.inet, world.terminal, world.shared)
    assert run(lambda: function(world), readable=[str(world.readable)], keep=keep) == expected
    assert snapshot(world) == before
    os.kill(world.sibling, 0)  # alive


@pytest.mark.parametrize("name", [name for name, (_, _, control) in ATTACKS.items() if control])
def test_would_have_worked(world: World, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    function, _, control = ATTACKS[name]
    monkeypatch.setenv("VW_CONTROL", "1")
    outcome = run(lambda: function(world), stages=None)
    if outcome != control and outcome.value in REFUSED_BY_THE_MACHINE:
        pytest.skip(f"this machine refuses it by itself: {outcome.value}")
    assert outcome == control


def snapshot(world: World) -> list[Any]:
    """What an attack on files would have changed."""
    return [
        (path.name, path.lstat().st_mode, path.lstat().st_mtime_ns, path.lstat().st_size)
        for path in sorted((*world.readable.iterdir(), world.secret))
    ]


def test_enough_attacks() -> None:
    assert len(ATTACKS) >= 60
    assert len({id(function) for function, _, _ in ATTACKS.values()}) == len(ATTACKS)


def test_a_thread_from_before_lockdown_is_bound_too() -> None:
    def action() -> bool:
        from sandbox_child import program

        from vortex_worker._core import lockdown

        go = threading.Event()
        thread = threading.Thread(target=lambda: (go.wait(), os.system("true")))
        thread.start()
        time.sleep(0.05)
        lockdown.install_filter(program("execute").for_pid(os.getpid()).code, all_threads=True)
        go.set()
        thread.join()
        return True

    assert run(action, stages=["bootstrap"]) == KILLED


def test_reads_what_it_may(world: World) -> None:
    def action() -> int:
        return len(world.data.read_bytes()) + len(os.listdir(world.readable))

    assert run(action, readable=[str(world.readable)]) == Outcome("returned", 2 * PAGE + 2)


def test_clean_aborts() -> None:
    """abort() must still end in SIGABRT: a crash is not a violation."""
    assert run(os.abort) == Outcome("killed", "SIGABRT")
    assert run(lambda: ctypes.string_at(0)) == Outcome("killed", "SIGSEGV")
    assert run(lambda: os._exit(3)) == Outcome("exited", 3)


def test_strict_opens_nothing(world: World) -> None:
    stages = ["bootstrap", "strict"]
    for action in (world.data.read_bytes, lambda: os.listdir(world.readable)):
        assert run(action, stages=stages, readable=[str(world.readable)]) == EACCES
    assert run(lambda: os.path.exists(world.data), stages=stages) == Outcome("returned", False)
