"""What hostile code tries after lockdown, each in a process of its own, each judged by its effect.

Every attack also runs with the sandbox off, where that does no harm, to show that it would have worked:
otherwise a test would pass for an attack that is merely broken. ``docs/sandbox.md`` says which layer stops
what.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import importlib
import mmap
import os
import pty
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from attack_list import ATTACKS, EACCES, PAGE, REFUSED_BY_THE_MACHINE, World
from sandbox_child import KILLED, Outcome, fork, libc, run, supported

for _topic in ("attacks_on_others", "attacks_on_files", "attacks_on_the_kernel"):
    importlib.import_module(_topic)  # each registers its attacks

pytestmark = pytest.mark.skipif(not supported(), reason="this machine lacks seccomp or Landlock")


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
        sibling = fork()
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
    faulthandler.disable()  # pytest's, which puts handlers back; a worker's fault handler (csrc/fault.c) does not
    assert run(os.abort) == Outcome("killed", "SIGABRT")
    assert run(lambda: ctypes.string_at(0)) == Outcome("killed", "SIGSEGV")
    assert run(lambda: os._exit(3)) == Outcome("exited", 3)


def test_strict_opens_nothing(world: World) -> None:
    stages = ["bootstrap", "strict"]
    for action in (world.data.read_bytes, lambda: os.listdir(world.readable)):
        assert run(action, stages=stages, readable=[str(world.readable)]) == EACCES
    assert run(lambda: os.path.exists(world.data), stages=stages) == Outcome("returned", False)
