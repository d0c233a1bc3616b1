"""An ordinary worker's day, run by test_workload.py as a program of its own.

usage: workload.py FOLDER POLICY    (FOLDER holds model.safetensors, model.pt, node_pack.py, slip.py)
       workload.py FOLDER           for test_needs.py

It imports torch and all the rest under Landlock and the bootstrap filter, locks down with POLICY, and goes
to work. What each piece of work gave is printed as one JSON object; work that dies is the last one named on
stderr. Without POLICY it imports, and forks a child under locks of their own for each line of its input.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
import time
from pathlib import Path
from socket import socketpair
from typing import Any

from workload_jobs import CONTROL, ENDS, JOBS

from vortex_worker._core import lockdown
from vortex_worker._core.arena import Arena
from vortex_worker._core.framing import FrameSocket
from vortex_worker._core.slots import Slot
from vortex_worker.sandbox import landlock, seccomp
from vortex_worker.sandbox.policy import Policy
from vortex_worker.sandbox.preload import preload, preload_plain


def serve(folder: str) -> None:
    """Imports once; then, for each line ``{"policy": …, "without": [call, n] or null, "work": [names]}`` of its
    input, forks a child that locks itself with that policy less its n-th rule of the call (and those of the same
    line of the file), and goes to work."""
    import torch

    assert torch
    preload()
    for load in preload_plain():
        load()
    assert lockdown.thread_count() == 1  # else no child could be trusted
    rules = landlock.readonly_rules([folder])
    for line in sys.stdin:
        wanted = json.loads(line)
        policy = seccomp.load_policy(wanted["policy"])
        if wanted["without"]:
            call, number = wanted["without"]
            reason = policy.rules[call][number].reason  # rules of one reason are one line of the file
            rest = tuple(rule for rule in policy.rules[call] if rule.reason != reason)
            changed = {**policy.rules, call: rest}
            policy = policy._replace(rules={name: left for name, left in changed.items() if left})
        print(json.dumps(_in_child(Path(folder), policy, rules, wanted["work"])), flush=True)


def _in_child(folder: Path, policy: Policy, rules: list[tuple[bytes, int]], work: list[str]) -> dict[str, Any]:
    first = seccomp.compile_policy(seccomp.load_policy("bootstrap").including(policy))
    second = seccomp.compile_policy(policy)
    read, write = os.pipe()
    ours, theirs = socketpair()
    arena = Arena.create(4 << 20)
    pid = os.fork()
    if pid == 0:
        os.dup2(write, 1)
        os.dup2(write, 2)
        CONTROL[:] = FrameSocket(ours.detach()), FrameSocket(theirs.detach())
        lockdown.isolate([1, 2, *(socket.fileno() for socket in CONTROL)])
        lockdown.landlock_restrict(rules)
        lockdown.install_filter(first.for_pid(os.getpid()).code, all_threads=True)
        faulthandler.enable(all_threads=False)
        lockdown.install_fault_handler(Slot(arena, 0))
        _warm_up()
        lockdown.install_filter(second.for_pid(os.getpid()).code, all_threads=True)
        for name in work:
            print("begin", name, flush=True)
            try:
                said = JOBS[name](folder) if name in JOBS else ENDS[name]()
            except BaseException as error:
                said = f"{type(error).__name__}: {error}"
            print("end", name, said or "ok", flush=True)
        os._exit(0)
    os.close(write)
    ours.close()
    theirs.close()
    said = ""
    with open(read) as log:
        for line in log:
            said += line
            if line == "stop me\n":
                time.sleep(0.03)  # for it to be waiting
                os.kill(pid, signal.SIGSTOP)
                os.waitid(os.P_PID, pid, os.WSTOPPED)
                os.kill(pid, signal.SIGCONT)
    end = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    arena.close()
    return {"end": end, "said": said}


def _warm_up() -> None:
    import torch

    torch.set_num_threads(2)
    torch.randn(512, 512) @ torch.randn(512, 512)  # starts the thread pool


def main(folder: str, execute: str) -> None:
    policy = seccomp.load_policy(execute)
    first = seccomp.compile_policy(seccomp.load_policy("bootstrap").including(policy), pid=os.getpid())
    second = seccomp.compile_policy(policy, pid=os.getpid())
    rules = landlock.readonly_rules([folder])
    sockets = [socket.detach() for socket in socketpair()]
    lockdown.isolate([1, 2, *sockets])
    os.environ["PATH"] = ""
    started = time.perf_counter()
    lockdown.landlock_restrict(rules)
    lockdown.install_filter(first.code, all_threads=True)
    installing = time.perf_counter() - started

    import google.protobuf.wrappers_pb2

    assert google.protobuf
    missing = preload()
    for load in preload_plain():
        load()
    _warm_up()
    CONTROL[:] = map(FrameSocket, sockets)
    started = time.perf_counter()
    lockdown.install_filter(second.code, all_threads=True)
    installing += time.perf_counter() - started
    lockdown.canary(b"/etc/passwd")

    report: dict[str, Any] = {"missing": missing, "installing_us": round(installing * 1e6), "jobs": {}}
    for name, function in JOBS.items():
        print(name, file=sys.stderr, flush=True)
        try:
            report["jobs"][name] = function(Path(folder)) or "ok"
        except BaseException as error:
            report["jobs"][name] = f"{type(error).__name__}: {error}"
    print(json.dumps(report), flush=True)


if __name__ == "__main__":
    (main if len(sys.argv) == 3 else serve)(*sys.argv[1:])
