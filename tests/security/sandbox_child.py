"""Runs an action in a child process under the real locks, and tells how it ended.

The child does what a worker does, in a worker's order: isolate, Landlock, bootstrap filter, execute filter.
The parent judges by effect: what the action returned, the errno it met, or the signal that ended it.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import select
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, NamedTuple

from vortex_worker.sandbox import landlock, seccomp, view

TIME_LIMIT = 30.0  # seconds; a child that hangs is killed and the test fails
STAGES = ("bootstrap", "execute")

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


class Outcome(NamedTuple):
    """How the child ended: ``returned`` a value, ``raised`` an errno, ``killed`` by a signal, ``exited``."""

    how: str
    value: Any = None

    def __str__(self) -> str:
        return f"{self.how} {self.value}"


KILLED = Outcome("killed", "SIGSYS")  # by the filter


def raised(name: str) -> Outcome:
    return Outcome("raised", name)


@cache
def program(name: str) -> seccomp.Program:
    policy = seccomp.load_policy(name)
    if name == "bootstrap":  # as a worker has it
        policy = policy.including(seccomp.load_policy("execute"))
    return seccomp.compile_policy(policy)


def syscall(name: str, *args: int | bytes | None) -> int:
    """One system call with nothing in between; OSError with its errno."""
    number = seccomp.number_of(name)
    assert number is not None, name
    if number < 0:
        raise OSError(errno.ENOSYS, f"{name} is not a call of this architecture")
    words = [ctypes.c_void_p(a) if isinstance(a, int) else a for a in args]
    result = libc.syscall(ctypes.c_long(number), *words)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), name)
    return int(result)


def lock(stages: Iterable[str] = STAGES, *, readable: Iterable[str] = (), keep: Iterable[int] = ()) -> None:
    """Lock the calling process as a worker is locked. It has one thread."""
    from vortex_worker._core import lockdown

    stages = tuple(stages)
    programs = [program(name) for name in stages]  # compiled before there is any lock, as in a worker
    rules = landlock.readonly_rules(readable)
    lockdown.isolate(sorted(keep))
    lockdown.landlock_restrict(rules)
    for prepared in programs:
        lockdown.install_filter(prepared.for_pid(os.getpid()).code, all_threads=True)


def fork() -> int:
    """os.fork, also beside the threads of other tests: no child here uses them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def run(
    action: Callable[[], Any],
    *,
    stages: Iterable[str] | None = STAGES,
    readable: Iterable[str] = (),
    keep: Iterable[int] = (),
) -> Outcome:
    """Fork, lock (``stages=None``: don't), run ``action``, and tell how it ended."""
    receive, send = os.pipe()
    if stages is not None:
        for name in stages:
            program(name)  # in the parent, so that each is compiled once
    pid = fork()
    if pid == 0:
        _child(action, stages, readable, keep, send)
    os.close(send)
    try:
        return _parent(pid, receive)
    finally:
        os.close(receive)


def _child(
    action: Callable[[], Any],
    stages: Iterable[str] | None,
    readable: Iterable[str],
    keep: Iterable[int],
    send: int,
) -> None:
    status = 70
    try:
        if stages is not None:
            lock(stages, readable=readable, keep=(*keep, send))
        try:
            outcome = Outcome("returned", action())
        except OSError as error:
            outcome = raised(errno.errorcode.get(error.errno or 0, repr(error)))
        except BaseException as error:
            outcome = Outcome("raised", f"{type(error).__name__}: {error}")
        os.write(send, json.dumps(outcome).encode())
        status = 0
    except BaseException as error:  # the locks themselves failed: never mistake that for a stopped attack
        os.write(send, json.dumps(Outcome("broken", f"{type(error).__name__}: {error}")).encode())
    finally:
        os._exit(status)


def _parent(pid: int, receive: int) -> Outcome:
    data = b""
    deadline = time.monotonic() + TIME_LIMIT
    while True:
        ready, _, _ = select.select([receive], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return Outcome("hung")
        chunk = os.read(receive, 65536)
        if not chunk:
            break
        data += chunk
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return Outcome("killed", signal.Signals(os.WTERMSIG(status)).name)
    if not data:
        return Outcome("exited", os.WEXITSTATUS(status))
    how, value = json.loads(data)
    assert how != "broken", f"the sandbox could not be installed: {value}"
    return Outcome(how, value)


@cache
def no_view() -> str:
    """Why this machine lets nobody have a view; "": it does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # as in `fork`
        return view.why_not() if supported() else "no sandbox at all"


def supported() -> bool:
    """Whether this machine has every lock that these tests are about."""
    if sys.platform != "linux" or not seccomp.available():
        return False
    from vortex_worker._core import lockdown

    return lockdown.landlock_abi() > 0
