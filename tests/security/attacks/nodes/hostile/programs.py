"""Starting another program, in every form."""

from __future__ import annotations

import ctypes
import platform
import struct
import threading
from typing import Any

from .registry import FILTER, ISOLATION, LANDLOCK, attack
from .tools import AT_EMPTY_PATH, AT_FDCWD, environment, libc, linger, module, os, strings, syscall, touch


@attack("files", FILTER, LANDLOCK)
def execve(world: Any) -> None:
    """`execve` of a shell."""
    os.execv("/bin/sh", touch(world))


@attack("files", FILTER, LANDLOCK)
def execve_by_path_search(world: Any) -> None:
    """`execvp`, which tries each folder of PATH."""
    os.execvp("sh", touch(world))


@attack("files", FILTER, LANDLOCK)
def execveat(world: Any) -> None:
    """`execveat` by path."""
    argv, env = strings(*touch(world)), environment()
    syscall("execveat", AT_FDCWD, b"/bin/sh", ctypes.addressof(argv), ctypes.addressof(env), 0)


@attack("files", FILTER, LANDLOCK)
def execveat_by_descriptor(world: Any) -> None:
    """`execveat` of an open file, by no path at all."""
    argv, env = strings(*touch(world)), environment()
    program = os.open("/bin/sh", os.O_RDONLY)
    syscall("execveat", program, b"", ctypes.addressof(argv), ctypes.addressof(env), AT_EMPTY_PATH)


@attack("files", FILTER, LANDLOCK)
def exec_through_the_loader(world: Any) -> None:
    """The dynamic loader, which lies in a folder that may be read, given a program to run."""
    maps = module("pathlib").Path("/usr/lib")
    loader = next(maps.glob("**/ld-linux*.so*"))
    os.execv(loader, [str(loader), "/bin/sh", *touch(world)[1:]])


@attack("files", FILTER, LANDLOCK)
def exec_a_script_of_the_models(world: Any) -> None:
    """An executable script in a folder that may be read."""
    os.execv(f"{world.models}/script.sh", ["script.sh", f"{world.outside}/executed"])


@attack("files", FILTER, LANDLOCK)
def exec_in_a_thread(world: Any) -> None:
    """`execve` from a thread other than the one that was locked down."""
    thread = threading.Thread(target=os.execv, args=("/bin/sh", touch(world)))
    thread.start()
    thread.join()


@attack("files", FILTER, LANDLOCK)
def posix_spawn(world: Any) -> None:
    """`posix_spawn`: clone with shared memory, then exec."""
    os.waitpid(os.posix_spawn("/bin/sh", touch(world), dict(os.environ)), 0)


@attack("files", FILTER, LANDLOCK)
def system(world: Any) -> None:
    """`os.system`."""
    os.system(touch(world)[2])


@attack("files", FILTER, LANDLOCK)
def system_of_the_c_library(world: Any) -> None:
    """`system` of the C library, by ctypes."""
    libc.system(os.fsencode(touch(world)[2]))


@attack("files", FILTER, LANDLOCK)
def popen_of_the_c_library(world: Any) -> None:
    """`popen` and `pclose` of the C library."""
    libc.popen.restype = ctypes.c_void_p
    stream = libc.popen(os.fsencode(touch(world)[2]), b"r")
    if stream:
        libc.pclose(ctypes.c_void_p(stream))


@attack("files", FILTER, LANDLOCK)
def subprocess(world: Any) -> None:
    """`subprocess.run`, as honest code would."""
    module("subprocess").run(["/bin/sh", *touch(world)[1:]], check=True)


@attack("files", FILTER, LANDLOCK)
def spawn_in_a_terminal(world: Any) -> None:
    """`forkpty`, then a shell in the new terminal."""
    pid, _ = os.forkpty()
    if pid == 0:
        os.execv("/bin/sh", touch(world))
    os.waitpid(pid, 0)


if platform.machine() == "x86_64":
    #: pause() for ever: mov al, 34; syscall; jmp back. A whole program, without loader or library.
    _CODE = b"\xb8\x22\0\0\0\x0f\x05\xeb\xf7"
    _ELF = struct.pack(
        "=4s5B7xHHIQQQIHHHHHH", b"\x7fELF", 2, 1, 1, 0, 0, 2, 62, 1, 0x400078, 64, 0, 0, 64, 56, 1, 64, 0, 0
    )
    _LOAD = struct.pack("=IIQQQQQQ", 1, 5, 0, 0x400000, 0x400000, 0x78 + len(_CODE), 0x78 + len(_CODE), 0x1000)

    @attack("processes", FILTER, ISOLATION)
    def exec_from_memory(world: Any) -> None:
        """A program that was never a file: `memfd_create`, write, `execveat`. Landlock knows no such files."""
        program = os.memfd_create("program", 0)
        os.write(program, _ELF + _LOAD + _CODE)
        argv, env = strings("program"), environment()
        if os.fork() == 0:
            syscall("execveat", program, b"", ctypes.addressof(argv), ctypes.addressof(env), AT_EMPTY_PATH)
            os._exit(1)
        module("time").sleep(0.05)


@attack("processes", FILTER)
def multiprocessing(world: Any) -> None:
    """`multiprocessing`'s fork."""
    module("multiprocessing").get_context("fork").Process(target=linger, daemon=False).start()
