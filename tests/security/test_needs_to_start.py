"""Every line of the bootstrap and handover policies is needed: taken away, no worker starts.

A start from nothing takes seconds, so bootstrap's lines are not taken away one after the other. A worker starts
without that policy, and every call that one of its lines is about waits until we have noted which line it is that lets
it through, where the execute policy, over which it is laid, would not: without that line, the same call would be
death. The few lines of the handover are taken away, one after the other.
"""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import Self

import pytest
import torch
from sandbox_child import fork, supported

import vortex_worker as vw
from vortex_worker._core import lockdown
from vortex_worker._core.arena import Arena
from vortex_worker.ipc import control_pb2 as pb
from vortex_worker.sandbox import seccomp
from vortex_worker.sandbox.policy import Policy, Rule
from vortex_worker.supervisor import denial, process
from vortex_worker.supervisor.denial import Denial, Listener

pytestmark = [
    pytest.mark.skipif(not supported(), reason="this machine lacks seccomp or Landlock"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="which lines are needed was found on x86-64"),
]
HERE = Path(__file__).parent
Line = tuple[str, int]  # call, and which of its rules

BOOTSTRAP = seccomp.load_policy("bootstrap")
EXECUTE = seccomp.load_policy("execute")


def own_lines(policy: Policy, base: Policy) -> dict[Line, Rule]:
    """Rules that stand in the policy's own file."""
    return {
        (call, number): rule
        for call, rules in policy.rules.items()
        if rules is not base.rules.get(call)
        for number, rule in enumerate(rules)
    }


LINES = own_lines(BOOTSTRAP, EXECUTE)
HANDOVER = seccomp.load_policy("handover")
#: Taken away for real: bootstrap has one that is for the handover alone, and that the recorder can't hear.
HANDING_OVER = [("handover", line) for line in own_lines(HANDOVER, EXECUTE)] + [("bootstrap", ("sendmsg", 0))]
_HANG = 1  # s after which a child counts as hanging


class Recorder:
    """Answers as the bootstrap policy would, and notes which of its lines were needed for it."""

    def __init__(self, folder: Path) -> None:
        self.needed: set[Line] = set()
        self.denied: list[Denial] = []
        self.path = folder / "recorder"
        self._door = socket.socket(socket.AF_UNIX)
        self._door.bind(str(self.path))
        self._door.listen()
        self._policy = BOOTSTRAP.including(EXECUTE)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        worker, _ = self._door.accept()
        with worker:
            _, (fd,), _, _ = socket.recv_fds(worker, 1, 1)
        listener = Listener(fd)
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        while not any(events & select.POLLHUP for _, events in poll.poll()):
            call = listener.receive()
            if call is not None:
                self._answer(listener, call)
        listener.close()

    def _answer(self, listener: Listener, call: Denial) -> None:
        action, error = self._policy.decide(call.call, call.args)
        if EXECUTE.decide(call.call, call.args) != (action, error):
            self.needed |= {
                (call.call, number)
                for number, rule in enumerate(BOOTSTRAP.rules[call.call])
                if all(condition.holds(call.args) for condition in rule.conditions)
            }
        if action == "allow":
            listener.let_through(call)
            return
        if action == "kill_process":
            self.denied.append(call)
        fcntl.ioctl(listener.fd, denial._SEND, denial._RESPONSE.pack(call.id, 0, -(error or errno.EPERM), 0))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join()
        self._door.close()


def stand_in(folder: Path) -> str:
    """A program in place of Python that starts a recorded worker."""
    calls = ",".join(sorted({call for call, _ in LINES} - {"sendmsg"}))
    path = folder / "python"
    path.write_text(f'#!/bin/sh\nexec {sys.executable} {HERE / "recorded.py"} {calls} "$@"\n')
    path.chmod(0o755)
    return str(path)


@pytest.fixture(scope="module")
def needed(tmp_path_factory: pytest.TempPathFactory) -> set[Line]:
    """The lines that two starts needed: by exec with an inherited socket, to the first job; and by a path, refused."""
    folder = tmp_path_factory.mktemp("recorded")
    (folder / "one").mkdir()
    (folder / "two").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        with Recorder(folder / "one") as first:
            patch.setenv("PYTHON_VW_RECORDER", str(first.path))
            patch.setattr(process.sys, "executable", stand_in(folder))
            with vw.Fabric(1, standby=0, zygote=False, threads=2, start_timeout=120) as fabric:
                fabric.wait_ready(120)
                fabric.run("Identity", {"tensor": [1.0]})
        patch.undo()
        with Recorder(folder / "two") as second:
            start_and_refuse(folder / "two", second.path)
    assert first.denied == []
    assert second.denied == []
    return first.needed | second.needed


def start_and_refuse(folder: Path, recorder: Path) -> None:
    arena = Arena.create(4 << 20)
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(folder / "s"))
        door.listen()
        worker = subprocess.Popen(
            [stand_in(folder), "-P", "-m", "vortex_worker.main"],
            env=os.environ | {
                "VORTEX_SOCKET": str(folder / "s"), "VORTEX_SHM_FD": str(arena.fd), "PYTHON_VW_RECORDER": str(recorder),
            },
            pass_fds=[arena.fd],
        )  # fmt: skip
        connection, _ = door.accept()
        with connection:
            connection.recv(1 << 16)
            ack = pb.HandshakeAck(accepted=False, reason="only to see it start")
            answer = pb.ControlPacket(seq=1, handshake_ack=ack).SerializeToString()
            connection.sendall(struct.pack("<I", len(answer)) + answer)
            assert worker.wait(60) == 2
    arena.close()


#: Calls that only a torch which was built for CUDA makes.
CUDA = {"sched_get_priority_max", "sched_get_priority_min"}


@pytest.mark.parametrize("line", sorted(LINES.keys() - {("sendmsg", 0)}), ids=lambda line: f"{line[0]}-{line[1]}")
def test_a_line_of_bootstrap_is_needed(needed: set[Line], line: Line) -> None:
    if line[0] in CUDA and torch.version.cuda is None:
        pytest.skip("torch was built without CUDA")
    assert line in needed, f"no start needs it: {LINES[line].reason}"


def without(policy: Policy, line: Line) -> Policy:
    call, number = line
    left = tuple(rule for at, rule in enumerate(policy.rules[call]) if at != number)
    rules = {name: rules for name, rules in policy.rules.items() if name != call} | ({call: left} if left else {})
    return policy._replace(rules=rules)


def hand_over(bootstrap: Policy, handover: Policy) -> bool:
    """What ``stages.Sandbox`` does from the lockdown to the seal, in a child. Whether it gets there."""
    first = seccomp.compile_policy(bootstrap.including(EXECUTE), notify=True)
    second = seccomp.compile_policy(EXECUTE.including(handover), notify=True)
    seal = seccomp.compile_seal()
    ours, theirs = socket.socketpair()
    child = fork()
    if child == 0:
        try:
            signal.alarm(_HANG)
            hand_over_in_a_child(theirs, first.code, second.code, seal.code)
        finally:
            os._exit(70)
    theirs.close()
    ended = os.pidfd_open(child)
    with ours:
        _, fds, _, _ = socket.recv_fds(ours, 1, 1)
        poll = select.poll()
        for fd in (*fds, ended):
            poll.register(fd, select.POLLIN)
        if poll.poll()[0][0] != ended:
            os.kill(child, signal.SIGKILL)  # it is held back, as the kernel tells us
        for fd in (*fds, ended):
            os.close(fd)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def hand_over_in_a_child(to: socket.socket, bootstrap: bytes, execute: bytes, seal: bytes) -> None:
    lockdown.isolate([2, to.fileno()])
    lockdown.install_filter(bootstrap, all_threads=False)
    listener = lockdown.install_filter(execute, all_threads=True, listener=True)
    assert listener is not None
    socket.send_fds(to, [b"!"], [listener])
    os.close(listener)
    lockdown.install_filter(seal, all_threads=True)
    os._exit(0)


def test_a_listener_is_handed_over() -> None:
    assert hand_over(BOOTSTRAP, HANDOVER)


@pytest.mark.parametrize(("policy", "line"), HANDING_OVER, ids=lambda value: str(value))
def test_a_line_of_the_handover_is_needed(policy: str, line: Line) -> None:
    if policy == "handover":
        assert not hand_over(BOOTSTRAP, without(HANDOVER, line))
    else:
        assert not hand_over(without(BOOTSTRAP, line), HANDOVER)
