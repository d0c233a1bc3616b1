"""A denied call is named by the kernel, to a supervisor that holds the filter's listener.

Where filters disagree, the kernel takes the strictest answer, and among equals the newest filter's: so both
filters are compiled with ``notify``, and only the newer one has a listener. The seal on top ends the moment
in which the worker could send descriptors.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from sandbox_child import fork, supported, syscall

from vortex_worker.sandbox import bpf, landlock, seccomp

pytestmark = pytest.mark.skipif(not supported(), reason="this machine lacks seccomp or Landlock")

# struct seccomp_notif: u64 id; u32 pid, flags; struct seccomp_data {int nr; u32 arch; u64 address, args[6]}
NOTIFICATION = struct.Struct("=QIIiIQ6Q")
SECCOMP_IOCTL_NOTIF_RECV = 0xC050_2100
TIME_LIMIT = 20.0


class Denied(NamedTuple):
    call: str
    args: tuple[int, ...]
    status: int  # how the worker ended


def number(call: str) -> int:
    found = seccomp.number_of(call)
    assert found is not None
    return found


def worker(control: socket.socket, action: Callable[[], Any], filters: list[seccomp.Program]) -> None:
    """Runs in the child: the order of a worker whose supervisor wants the listener."""
    from vortex_worker._core import lockdown

    status = 70
    try:
        bootstrap, execute, seal = (program.for_pid(os.getpid()).code for program in filters)
        rules = landlock.readonly_rules()
        lockdown.isolate([control.fileno()])
        lockdown.landlock_restrict(rules)
        lockdown.install_filter(bootstrap, all_threads=True)
        listener = lockdown.install_filter(execute, all_threads=True, listener=True)
        assert listener is not None
        socket.send_fds(control, [b"listener"], [listener])
        os.close(listener)
        lockdown.install_filter(seal, all_threads=True)
        action()
        status = 0
    finally:
        os._exit(status)


def denied(action: Callable[[], Any]) -> Denied | int:
    """Run ``action`` in a sealed worker: the call that it was denied, or the worker's status if none was."""
    execute = seccomp.load_policy("execute")
    filters = [
        seccomp.compile_policy(seccomp.load_policy("bootstrap").including(execute), notify=True),
        seccomp.compile_policy(execute.including(seccomp.load_policy("handover")), notify=True),
        seccomp.compile_seal(),
    ]
    ours, theirs = socket.socketpair()
    with ours, theirs:
        pid = fork()
        if pid == 0:
            worker(theirs, action, filters)
        theirs.close()
        ours.settimeout(TIME_LIMIT)
        _, descriptors, _, _ = socket.recv_fds(ours, 64, 1)
        if not descriptors:
            return os.waitpid(pid, 0)[1]
        listener = descriptors[0]
        try:
            poll = select.poll()
            poll.register(listener, select.POLLIN)
            events = poll.poll(TIME_LIMIT * 1000)
            if not events or not events[0][1] & select.POLLIN:  # hung up: it ended by itself
                return os.waitpid(pid, 0)[1]
            buffer = bytearray(NOTIFICATION.size)
            fcntl.ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, buffer)
            os.kill(pid, signal.SIGKILL)
        finally:
            os.close(listener)
        _, _, _, nr, arch, _, *args = NOTIFICATION.unpack(buffer)
        assert arch == bpf.NATIVE
        call = {number(name): name for name in ("execve", "socket", "getpgid")}.get(nr, str(nr))
        return Denied(call, tuple(args), os.waitpid(pid, 0)[1])


def test_names_what_both_filters_deny() -> None:
    found = denied(lambda: os.execv("/bin/true", ["true"]))
    assert isinstance(found, Denied)
    assert found.call == "execve"
    assert found.status == signal.SIGKILL  # the supervisor's; the call never ran


def test_arguments_are_told() -> None:
    found = denied(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    assert isinstance(found, Denied)
    assert found.call == "socket"
    assert found.args[0] == socket.AF_INET


def test_from_another_thread() -> None:
    def action() -> None:
        thread = threading.Thread(target=syscall, args=("getpgid", 0))
        thread.start()
        thread.join()

    found = denied(action)
    assert isinstance(found, Denied)
    assert found.call == "getpgid"


def test_a_handler_changes_nothing() -> None:
    def action() -> None:
        with contextlib.suppress(PermissionError):
            signal.signal(signal.SIGSYS, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGSYS])
        syscall("getpgid", 0)

    assert isinstance(denied(action), Denied)


@pytest.mark.parametrize("call", ["sendmsg", "seccomp"])
def test_the_seal(call: str) -> None:
    """No more descriptors, no more filters: death, and unnamed."""
    assert denied(lambda: syscall(call, 1, 0, 0)) == signal.SIGSYS


def test_work_goes_on() -> None:
    assert denied(lambda: [os.getpid(), threading.Thread(target=int).start(), bytes(1 << 24)]) == 0


def test_the_seal_decides_two_calls_only() -> None:
    machine = bpf.Machine(seccomp.compile_seal().code)
    dead = {nr for nr in range(1024) if machine.decide(nr)[0] != "allow"}
    assert dead == {number("sendmsg"), number("seccomp")}


def test_calls_of_other_architectures_are_told_too() -> None:
    """The seal, which has no listener, leaves them to the filter that has."""
    seal, execute = (
        bpf.Machine(program.code)
        for program in (seccomp.compile_seal(), seccomp.compile_policy(seccomp.load_policy("execute"), notify=True))
    )
    for call, arch in ((number("read"), bpf.I386), (number("sendmsg") | bpf.X32_BIT, bpf.NATIVE), (-1, bpf.NATIVE)):
        assert seal.decide(call, arch=arch)[0] == "allow"
        assert execute.decide(call, arch=arch)[0] == "notify"
