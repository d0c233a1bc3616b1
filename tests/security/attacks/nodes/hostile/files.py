"""Files: reading what is closed, writing anything at all, and games with links and names."""

from __future__ import annotations

import mmap
import struct
from typing import Any

from .registry import FILTER, ISOLATION, LANDLOCK, VIEW, attack
from .tools import AT_FDCWD, module, os, syscall

_ABI_TRUNCATE = 3


def read(path: str) -> bytes:
    descriptor = os.open(path, os.O_RDONLY)
    return os.read(descriptor, 4096)


# Reading


@attack("leak", LANDLOCK, VIEW)
def read_a_secret(world: Any) -> bytes:
    """A file outside the folders that may be read."""
    return read(f"{world.outside}/secret")


@attack("leak", LANDLOCK, VIEW)
def read_by_climbing(world: Any) -> bytes:
    """The same, by `..` from a folder that may be read."""
    return read(f"{world.models}/sub/../../outside/secret")


@attack("leak", LANDLOCK, VIEW)
def read_through_a_link(world: Any) -> bytes:
    """The same, through a link that lies in a folder that may be read."""
    return read(f"{world.models}/link")


@attack("leak", LANDLOCK, VIEW)
def read_through_a_linked_folder(world: Any) -> bytes:
    """The same, through a link to its folder."""
    return read(f"{world.models}/folder/secret")


@attack("leak", LANDLOCK, VIEW)
def read_from_a_moved_folder(world: Any) -> bytes:
    """Open a folder that may be read; its owner moves it out meanwhile, and `..` is elsewhere now."""
    folder = os.open(f"{world.models}/sub", os.O_RDONLY | os.O_DIRECTORY)
    world.node.context.progress(1, 2, "move")  # the owner does
    module("time").sleep(0.3)
    return os.read(os.open("../secret", os.O_RDONLY, dir_fd=folder), 64)


@attack("leak", LANDLOCK, VIEW)
def read_in_a_race(world: Any) -> bytes:
    """A file that is a link every other moment: looked at while harmless, opened while not."""
    world.node.context.progress(1, 2, "flicker")  # its owner swaps the two until the job ends
    end = module("time").monotonic() + 0.5
    while module("time").monotonic() < end:
        try:
            if not os.path.islink(f"{world.models}/flicker"):
                got = read(f"{world.models}/flicker")
                if got != b"harmless":
                    return got
        except OSError:
            pass
    raise PermissionError(13, "never")


@attack("leak", LANDLOCK, VIEW)
def read_by_another_root(world: Any) -> bytes:
    """The same, below /proc/self/root."""
    return read(f"/proc/self/root{world.outside}/secret")


@attack("leak", FILTER, LANDLOCK)
def read_by_path_only(world: Any) -> bytes:
    """O_PATH, which Landlock does not ask about, then open it again by /proc/self/fd."""
    descriptor = os.open(f"{world.outside}/secret", os.O_PATH)
    return read(f"/proc/self/fd/{descriptor}")


@attack("leak", FILTER, LANDLOCK)
def read_by_openat2(world: Any) -> bytes:
    """`openat2`, whose flags no filter can see."""
    how = struct.pack("=QQQ", os.O_RDONLY, 0, 0)
    descriptor = syscall("openat2", AT_FDCWD, f"{world.outside}/secret".encode(), how, len(how))
    return os.read(descriptor, 64)


@attack("leak", FILTER, LANDLOCK)
def read_with_a_garbage_flag(world: Any) -> bytes:
    """`openat` with flags that don't exist, and garbage in the half that the kernel ignores."""
    descriptor = syscall("openat", AT_FDCWD, f"{world.outside}/secret".encode(), 0x1_4000_0000, 0)
    return os.read(descriptor, 64)


@attack("claim", LANDLOCK, VIEW)
def read_the_users(world: Any) -> bool:
    """/etc/passwd."""
    return b"root" in read("/etc/passwd")


@attack("claim", LANDLOCK)
def list_everything(world: Any) -> bool:
    """The names in the root folder, and in the folder that it was started in."""
    return bool(os.listdir("/") + os.listdir("."))


@attack("claim", LANDLOCK, also_off=(ISOLATION,))
def read_its_environment(world: Any) -> bool:
    """/proc/self/environ."""
    return bool(read("/proc/self/environ"))


@attack("claim", LANDLOCK)
def list_processes(world: Any) -> bool:
    """/proc: who else is there."""
    return bool(os.listdir("/proc"))


# Learning what exists: Landlock does not restrict it.


@attack("claim", VIEW)
def learn_what_exists(world: Any) -> bool:
    """`stat`: whether a file outside exists, and how large it is."""
    return os.stat(f"{world.outside}/secret").st_size > 0


@attack("claim", VIEW)
def learn_what_exists_by_statx(world: Any) -> bool:
    """The same by `statx`."""
    return syscall("statx", AT_FDCWD, f"{world.outside}/secret".encode(), 0, 0x7FF, bytes(256)) == 0


@attack("claim", VIEW)
def learn_what_exists_by_access(world: Any) -> bool:
    """The same by `access`."""
    return os.access(f"{world.outside}/secret", os.F_OK)


@attack("claim", VIEW)
def learn_what_exists_by_errors(world: Any) -> bool:
    """`open`, by whose errors one can tell: no such file, or one that may not be read."""
    try:
        return os.open(f"{world.outside}/secret", os.O_RDONLY) > 0
    except PermissionError:
        return True


@attack("claim", VIEW)
def learn_where_a_link_leads(world: Any) -> bool:
    """`readlink` of a link outside."""
    return bool(os.readlink("/proc/mounts"))


@attack("claim", VIEW)
def learn_of_the_machine(world: Any) -> bool:
    """`stat` of well-known files of an administrator's and of the system's: what is installed, and who uses it."""
    return any(map(os.path.lexists, ("/etc/shadow", "/etc/ssh", "/etc/passwd", "/var/log")))


@attack("claim", VIEW)
def learn_of_processes(world: Any) -> bool:
    """`stat` of /proc/PID: when a process began, and whose it is."""
    return os.stat(f"/proc/{world.pids['bystander']}").st_ino > 0


@attack("claim", VIEW)
def climb_above_the_root(world: Any) -> bool:
    """`..` from the root folder, from the working directory, and from where a folder is mounted."""
    ways = (
        "/" + "../" * 16,
        "../" * 16,
        world.models + "/.." * 32 + "/",
        *(os.path.join("/proc/self", name, "") for name in ("root", "cwd")),
    )
    return any(os.path.lexists(f"{way}{world.outside.lstrip('/')}/secret") for way in ways)


@attack("claim", VIEW)
def climb_by_a_thread(world: Any) -> bool:
    """The root of each of its threads, and of the process that it was forked from."""
    roots = [f"/proc/self/task/{os.getpid()}/root", "/proc/thread-self/root", f"/proc/{world.pids['zygote']}/root"]
    return any(os.path.lexists(f"{root}{world.outside}/secret") for root in roots)


@attack("claim", FILTER, LANDLOCK, also_off=(ISOLATION,))
def read_the_machines_memory(world: Any) -> bool:
    """/dev/mem, or else /dev/kmsg."""
    try:
        return os.open("/dev/mem", os.O_RDWR) > 0
    except FileNotFoundError:
        return os.open("/dev/kmsg", os.O_RDWR) > 0


# Writing


@attack("files", FILTER, LANDLOCK)
def create(world: Any) -> None:
    """A new file in a folder that may be read."""
    os.open(f"{world.models}/new", os.O_CREAT | os.O_WRONLY, 0o600)


@attack("files", FILTER, LANDLOCK)
def create_outside(world: Any) -> None:
    """A new file anywhere else, by `creat`."""
    syscall("creat", f"{world.outside}/new".encode(), 0o600)


@attack("files", FILTER, LANDLOCK)
def create_by_openat2(world: Any) -> None:
    """A new file, by `openat2`."""
    how = struct.pack("=QQQ", os.O_CREAT | os.O_WRONLY, 0o600, 0)
    syscall("openat2", AT_FDCWD, f"{world.models}/new".encode(), how, len(how))


@attack("claim", FILTER, LANDLOCK)
def nameless_file(world: Any) -> bool:
    """O_TMPFILE."""
    return os.open(world.models, os.O_TMPFILE | os.O_RDWR, 0o600) > 0


@attack("files", FILTER, LANDLOCK, ISOLATION)
def overwrite(world: Any) -> None:
    """Poison a checkpoint that others will load."""
    descriptor = os.open(f"{world.models}/weights.bin", os.O_WRONLY)
    os.write(descriptor, b"poison")


@attack("files", FILTER, LANDLOCK, ISOLATION)
def overwrite_through_a_mapping(world: Any) -> None:
    """The same, by a shared writable mapping of a file opened for reading and reopened for writing."""
    reader = os.open(f"{world.models}/weights.bin", os.O_RDONLY)
    writer = os.open(f"/proc/self/fd/{reader}", os.O_RDWR)
    os.pwrite(writer, b"poison", 0)
    mmap.mmap(writer, mmap.PAGESIZE)[:6] = b"poison"


@attack("files", FILTER, LANDLOCK, abi=_ABI_TRUNCATE)
def truncate(world: Any) -> None:
    """`truncate`."""
    os.truncate(f"{world.models}/weights.bin", 0)


@attack("files", FILTER, LANDLOCK)
def unlink(world: Any) -> None:
    """`unlink`."""
    os.unlink(f"{world.models}/weights.bin")


@attack("files", FILTER, LANDLOCK)
def remove_the_tree(world: Any) -> None:
    """`shutil.rmtree`."""
    module("shutil").rmtree(f"{world.models}/sub")


@attack("files", FILTER, LANDLOCK)
def rename(world: Any) -> None:
    """`rename`: one model in the place of another."""
    os.rename(f"{world.models}/flicker", f"{world.models}/weights.bin")


@attack("files", FILTER, LANDLOCK)
def swap_names(world: Any) -> None:
    """`renameat2` with RENAME_EXCHANGE."""
    one, other = f"{world.models}/flicker".encode(), f"{world.models}/weights.bin".encode()
    syscall("renameat2", AT_FDCWD, one, AT_FDCWD, other, 2)


@attack("files", FILTER, LANDLOCK)
def rename_out(world: Any) -> None:
    """`rename` of a secret into a folder that may be read."""
    os.rename(f"{world.outside}/secret", f"{world.models}/secret")


@attack("files", FILTER, LANDLOCK)
def link_in(world: Any) -> None:
    """A hard link to a secret, in a folder that may be read."""
    os.link(f"{world.outside}/secret", f"{world.models}/secret")


@attack("files", FILTER, LANDLOCK)
def symlink(world: Any) -> None:
    """A symbolic link, for a more trusting program to follow."""
    os.symlink(f"{world.outside}/secret", f"{world.models}/later")


@attack("files", FILTER, LANDLOCK)
def make_a_folder(world: Any) -> None:
    """`mkdir`."""
    os.mkdir(f"{world.models}/new")


@attack("files", FILTER, LANDLOCK)
def make_a_pipe(world: Any) -> None:
    """`mkfifo`, to talk to others by."""
    os.mkfifo(f"{world.models}/pipe")


@attack("files", FILTER, LANDLOCK, also_off=(ISOLATION,))
def make_a_device(world: Any) -> None:
    """`mknod`: a device file of the machine's memory."""
    os.mknod(f"{world.outside}/device", 0o020600, os.makedev(1, 1))


@attack("files", FILTER, VIEW)
def chmod(world: Any) -> None:
    """`chmod` of a secret: Landlock does not cover it."""
    os.chmod(f"{world.outside}/secret", 0o777)


@attack("files", FILTER, VIEW)
def set_user_id(world: Any) -> None:
    """The set-user-id bit on a script."""
    os.chmod(f"{world.models}/script.sh", 0o6777)


@attack("files", FILTER, VIEW, also_off=(ISOLATION,))
def chown(world: Any) -> None:
    """`chown` of a secret: Landlock does not cover it."""
    os.chown(f"{world.outside}/secret", 65534, 65534)


@attack("files", FILTER, VIEW)
def utime(world: Any) -> None:
    """`utime`: another date."""
    os.utime(f"{world.outside}/secret", (1, 1))


@attack("files", FILTER, VIEW)
def extended_attribute(world: Any) -> None:
    """`setxattr`: something written beside the file."""
    os.setxattr(f"{world.models}/weights.bin", "user.vw", b"x")


@attack("files", FILTER, LANDLOCK, ISOLATION)
def copy_in_the_kernel(world: Any) -> None:
    """`sendfile` into a file: a write that is no `write`."""
    source = os.open(f"{world.models}/flicker", os.O_RDONLY)
    target = os.open(f"{world.models}/weights.bin", os.O_WRONLY)
    os.sendfile(target, source, 0, 8)


@attack("shared memory", FILTER, LANDLOCK)
def shared_memory_by_name(world: Any) -> None:
    """A name in /dev/shm, by `shm_open`, for others to find."""
    module("_posixshmem").shm_open(f"/vw-attack-{world.mark}", os.O_CREAT | os.O_RDWR, 0o600)


# Bytecode


@attack("files", FILTER, LANDLOCK)
def replace_compiled_code(world: Any) -> None:
    """A .pyc of its own beside another node's source, to be run when that node is loaded next."""
    cache = f"{world.nodes}/__pycache__"
    if not os.path.isdir(cache):
        os.mkdir(cache)
    os.close(os.open(f"{cache}/honest.{module('sys').implementation.cache_tag}.pyc", os.O_CREAT | os.O_WRONLY, 0o600))


@attack("files", FILTER, LANDLOCK, ISOLATION)
def replace_source(world: Any) -> None:
    """Lines of its own at the end of another node's source."""
    descriptor = os.open(f"{world.nodes}/honest.py", os.O_WRONLY | os.O_APPEND)
    os.write(descriptor, b"\nimport antigravity\n")


@attack("files", FILTER, LANDLOCK, ISOLATION)
def let_python_write_bytecode(world: Any) -> None:
    """Python's own writer of .pyc files, turned on again."""
    py_compile = module("py_compile")
    py_compile.compile(f"{world.nodes}/honest.py", cfile=f"{world.models}/honest.pyc", doraise=True)
