"""A forked child that can't get out of a lock, and what it tries the locks with."""

import ctypes
import os
import signal
import struct
import traceback
import warnings
from pathlib import Path

import pytest

from vortex_worker._core import lockdown

ROOT = os.geteuid() == 0
NOBODY = 65534

needs_root = pytest.mark.skipif(not ROOT, reason="changes user")
needs_landlock = pytest.mark.skipif(lockdown.landlock_abi() == 0, reason="this kernel has no Landlock")

READ = lockdown.READ_FILE | lockdown.READ_DIR  # Landlock's
PR_SET_NO_NEW_PRIVS = 38
PR_GET_DUMPABLE = 3


def prctl(option: int, argument: int = 0) -> int:
    return ctypes.CDLL(None, use_errno=True).prctl(option, argument, 0, 0, 0)


def in_child(body) -> int:
    """Runs ``body(log)`` in a fork; what it raises fails the test. ``log`` is a pipe it may keep."""
    log, write = os.pipe()
    with warnings.catch_warnings():
        # Some test before may have left threads, of OpenBLAS say; the child does not use them.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        status = 1
        try:
            signal.alarm(60)
            body(write)
            status = 0
        except BaseException:
            os.write(write, traceback.format_exc().encode())
        finally:
            os._exit(status)
    os.close(write)
    with open(log, "rb") as pipe:
        text = pipe.read().decode()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status <= 0, text
    assert status < 0 or not text, text
    return status


def process_status() -> dict[str, str]:
    lines = Path("/proc/self/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def raises(number: int, call, *arguments) -> None:
    """``call`` must fail with exactly this errno."""
    with pytest.raises(OSError, match=rf"^\[Errno {number}\]"):
        call(*arguments)


LOAD_NUMBER = struct.pack("<HBBI", 0x20, 0, 0, 0)  # BPF_LD | BPF_W | BPF_ABS, offset of seccomp_data.nr
GETPPID = {"x86_64": 110, "aarch64": 173}[os.uname().machine]
OPENAT = {"x86_64": 257, "aarch64": 56}[os.uname().machine]
KILL_PROCESS, ERRNO, USER_NOTIF, ALLOW = 0x80000000, 0x00050000, 0x7FC00000, 0x7FFF0000


def program(number: int, action: int) -> bytes:
    """A filter that does ``action`` on one system call, and allows all others."""
    jump = struct.pack("<HBBI", 0x15, 0, 1, number)  # BPF_JMP | BPF_JEQ | BPF_K: else skip one
    returns = [struct.pack("<HBBI", 0x06, 0, 0, value) for value in (action, ALLOW)]
    return LOAD_NUMBER + jump + b"".join(returns)
